"""What adapting a model family takes, for every backend, an outsider's too.

===========  =====================================================================================
weights      where a model's files are, on this computer and on the hub; fetching them
revisions    which commit of a repository is here, and whether its files are the hub's
failures     what stops a fetch, each with its line and hint
checkpoint   what is in those files: configuration, tensors and their shapes, the fingerprint
tensors      tensors of files larger than memory
device       the device and dtype to run on
footprint    how much memory a model will take, from its shapes
room         what memory there is, and by which means a model fits into it
recompute    learning that keeps less and computes it again
offload      weights that are on a card only while they are used
quantize     weights in 8 or 4 bits
pieces       batches that are learned from a few lessons at a time
tokens       concept tokens: their start, their norms, their places in a prompt
deep         concept tokens that are added at later layers
text         answers: choosing and streaming tokens, and the loss of given answers
prefix       what several requests begin with is read once
language     a language model that answers about pictures: its rows, its losses, its answers
pictures     what frozen encoders make of pictures, remembered
codes        pictures as grids of codes: which of them a mask leaves alone, and painting them
speculative  several codes drawn ahead in one pass
experts      a low-rank expert for each task
===========  =====================================================================================

Nothing here knows one family; nothing here opens a model.
"""
