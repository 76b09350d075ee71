"""How fast is sctok tokenize here, where does the time go, and what is the bare model's speed?

    python benchmarks/tokenize.py [--device cuda] [--encoder base] [--quick] [--json FILE] [--markdown FILE]

Sections (--only NAME,NAME): stages and what is not the model; the bare model on pre-loaded batches; decoding workers;
length and number of files; memory; a plain loop over files; the three scripts that people write. With --device cuda,
first what the encoder does there in each precision, batch and way of launching, and how many tokens low precision
changes. Audio is real, cut and repeated: the bundled clips, or --audio FOLDER.
"""

import sys
from importlib.machinery import PathFinder
from sysconfig import get_path

if __name__ == "tokenize":  # some script in this folder, or a library of it, means the module of the standard library
    found = PathFinder.find_spec("tokenize", [get_path("stdlib")])
    assert found is not None
    assert found.loader is not None
    found.loader.exec_module(sys.modules[__name__])


def main() -> int:
    """Measure and print; the work is in tokenize_sections.py."""
    from tokenize_sections import run

    return run(__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
