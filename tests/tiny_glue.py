"""Tiny files in the formats of GLUE's tasks."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

PAIR = "index\tgenre\tsentence1\tsentence2"
# What the test files of every task look like: header, training rows, test header, test rows.
TINY: dict[str, dict[str, str]] = {
    "cola": {
        "train.tsv": 'gj04\t1\t\t"The sailors rode the breeze clear.\n'
        "bc\t0\t*\tHe éat\ngj\t1\t\tYes.\n",
        "dev.tsv": "gj04\t0\t*\tThem go.\n",
        "test.tsv": "index\tsentence\n0\tBill whistled.\n",
    },
    "sst2": {
        "train.tsv": "sentence\tlabel\nhide new secretions \t0\n日本 🎬\t1\n",
        "dev.tsv": "sentence\tlabel\nit 's charming\t1\n",
        "test.tsv": "index\tsentence\n0\tuneasy mishmash\n1\t\n",
    },
    "mrpc": {
        "train.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        '1\t7\t8\t"A x.\tB\n1\t5\t5\tends early\n0\t9\t1\tC\tD\n',
        "dev.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\tE\tF\n",
        "test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t4\t5\tG\tH\n",
    },
    "qqp": {
        # The second row ends before its label, the third has none, the fourth line is empty.
        "train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\tA?\tB?\t1\n"
        "2\t3\t4\tC?\n3\t5\t6\tD?\tE?\t\n\n4\t7\t8\t\tF?\t0\n",
        "dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tG?\tH?\t0\n",
        "test.tsv": "id\tquestion1\tquestion2\n0\tI?\tJ?\n",
    },
    "stsb": {
        "train.tsv": f"{PAIR}\tscore\n0\tnews\tA\tB\t5.000\n1\tnews\tC\tD\t0.800\n",
        "dev.tsv": f"{PAIR}\tscore\n0\tnews\tE\tF\t2.5\n",
        "test.tsv": f"{PAIR}\n0\tnews\tG\tH\n",
    },
    "mnli": {
        "train.tsv": f"{PAIR}\tlabel1\tgold_label\n0\tg\tA\tB\tneutral\tneutral\n"
        "1\tg\tC\tD\tneutral\tcontradiction\n",
        "dev_matched.tsv": f"{PAIR}\tgold_label\n0\tg\tE\tF\tentailment\n",
        "dev_mismatched.tsv": f"{PAIR}\tgold_label\n0\tg\tG\tH\tneutral\n",
        "test_matched.tsv": f"{PAIR}\n0\tg\tI\tJ\n",
        "test_mismatched.tsv": f"{PAIR}\n0\tg\tK\tL\n",
    },
    "qnli": {
        "train.tsv": "index\tquestion\tsentence\tlabel\n"
        "0\tA?\tB\tentailment\n1\tC?\tD\tnot_entailment\n",
        "dev.tsv": "index\tquestion\tsentence\tlabel\n0\tE?\tF\tnot_entailment\n",
        "test.tsv": "index\tquestion\tsentence\n0\tG?\tH\n",
    },
    "rte": {
        "train.tsv": "index\tsentence1\tsentence2\tlabel\n"
        "0\tA\tB\tentailment\n1\tC\tD\tnot_entailment\n",
        "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tE\tF\tnot_entailment\n",
        "test.tsv": "index\tsentence1\tsentence2\n0\tG\tH\n",
    },
    "wnli": {
        "train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n1\tC\tD\t0\n",
        "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tE\tF\t0\n",
        "test.tsv": "index\tsentence1\tsentence2\n0\tG\tH\n",
    },
}
TRAIN_LABELS = {
    "cola": [1, 0, 1], "sst2": [0, 1], "mrpc": [1, 0], "qqp": [1, 0], "stsb": [5.0, 0.8],
    "mnli": [1, 2], "qnli": [0, 1], "rte": [0, 1], "wnli": [1, 0],
}  # fmt: skip


MSR = {
    "msr_paraphrase_train.txt": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    "1\t1\t2\tA\tB\r\n0\t3\t4\tC\tD\r\n1\t5\t6\tE\tF\r\n",
    "msr_paraphrase_test.txt": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tG\tH\n",
    "mrpc_dev_ids.tsv": "3\t4\n6\t5\n",
}


def write(folder: Path, files: Mapping[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode())
    return folder


def zipped(path: Path, files: Mapping[str, str], folder: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"__MACOSX/{folder}/._train.tsv", "junk")
        archive.writestr(f"{folder}/original/train.tsv", "other columns\n")
        for name, content in files.items():
            archive.writestr(f"{folder}/{name}", content)
    return path
