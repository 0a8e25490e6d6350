"""How nano's weights are made: `python -m pretraining --help`. Not in the wheel."""
