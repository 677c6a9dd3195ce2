"""Programs that leave a tree of processes behind, and one that looks for them."""

from __future__ import annotations

MAKE = "mkdir -p a/shut; printf 'x\\0y' > a/data; ln -s a/data link; ln a/data hard"


TREE = f"{MAKE}; touch -d @1000 a/data; chmod 500 a/shut"


LOOK = "find . | sort; stat -c '%n %a %s %Y' a a/data a/shut; readlink link; od -c hard"
