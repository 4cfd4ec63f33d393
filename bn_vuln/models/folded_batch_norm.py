import contextlib


@contextlib.contextmanager
def folded_batch_norm(model):
    yield 0
