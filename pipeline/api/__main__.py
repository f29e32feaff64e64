"""``python -m ntkpipe``: the command, also where its script is not on the PATH."""

from ntkpipe.pipeline.cli import main

if __name__ == "__main__":
    main()
