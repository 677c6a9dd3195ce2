raise ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [TypeError("b"), OSError(2, "c")])])
