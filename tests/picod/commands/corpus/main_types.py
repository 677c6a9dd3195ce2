import dataclasses, enum, typing
@dataclasses.dataclass
class Point:
    x: "int"
    y: typing.Optional["Point"] = None
class Color(enum.Enum):
    RED = 1
print(Point(1, Point(2)), typing.get_type_hints(Point), Color.RED, repr(Color))
