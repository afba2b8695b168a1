"""Started as `python benchmarks/flickr8k_synthetic FLICKR8K`; see `suite`."""

import sys
from pathlib import Path

# of a folder that is run, the folder itself is on the path, and not what lies beside it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flickr8k_synthetic.suite import main
from saysee.errors import SayseeError

if __name__ == "__main__":
    try:
        main()
    except SayseeError as error:
        sys.exit(f"flickr8k_synthetic: {error}")
