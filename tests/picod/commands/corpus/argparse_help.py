# args: --help
import argparse
argparse.ArgumentParser(description="x").parse_args()
