# Named like a module that numpy needs: what python3 does then, it does preloaded too.
import numpy
