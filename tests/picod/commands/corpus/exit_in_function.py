def main():
    try:
        return 4
    finally:
        print("finally")
if __name__ == "__main__":
    raise SystemExit(main())
