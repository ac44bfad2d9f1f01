"""`python -m prep.quickstart FOLDER TOKENIZER`: write the quickstart's data below FOLDER/data."""

import sys
from pathlib import Path

from prep.quickstart import write_quickstart

write_quickstart(Path(sys.argv[1]), tokenizer=Path(sys.argv[2]))
