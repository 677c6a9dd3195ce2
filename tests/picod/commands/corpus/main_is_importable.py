if __name__ == "__main__":
    import __main__, main_is_importable
    print(__main__.__file__ == main_is_importable.__file__)
else:
    print("imported as", __name__)
