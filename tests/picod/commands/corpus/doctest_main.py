def f(x):
    """
    >>> f(1)
    2
    >>> f(2)
    5
    """
    return x + 1
import doctest
print(doctest.testmod())
