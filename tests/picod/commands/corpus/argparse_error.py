# args: --bad
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--good", required=True)
parser.parse_args()
