"""`python -m pipelines` is `packtrain`, for machines where scripts are not on the path."""

from pipelines.cli import main

main()
