"""Cases of `remedies`: runs, secrets, checkpoints, jobs, and the tasks of train.py."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_text
from programs import files_up_to, without_modes
from remedies import case, refused, warned

from instahide_jax import InstaHide, insecure_secret, secret_key
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.compiled import Collective, crossing
from instahide_jax.config import Experiment, TextExperiment
from instahide_jax.data.parts import image_part
from instahide_jax.data.sources import (
    Dataset,
    Mnist5k,
    PoolFile,
    PoolHeldOut,
    Statistics,
    TfdsStream,
)
from instahide_jax.data.text_sources import SyntheticText, TableText
from instahide_jax.distributed import join
from instahide_jax.encoders import make_model
from instahide_jax.errors import writing
from instahide_jax.image_data import ClientImages, agree, open_images
from instahide_jax.metrics import read_metrics
from instahide_jax.optimizers import make_optimizer
from instahide_jax.parallel import check_batch_size, check_device_map, make_mesh
from instahide_jax.run import (
    check_data,
    check_precision,
    open_run,
    read_experiment,
    secret_files,
)
from instahide_jax.secret import read_secret, write_secret
from instahide_jax.text_task import agree as agree_on_texts
from instahide_jax.text_task import open_texts
from instahide_jax.training import check_finite, init_state

ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
STATE = {"kernel": np.ones((4, 4), np.float32)}
ABSTRACT = {"kernel": jax.ShapeDtypeStruct((4, 4), "float32")}


def opened(folder: Path, experiment: Experiment = tiny.EXPERIMENT, data: str = "data") -> Any:
    files = secret_files(folder, None, range(experiment.clients), experiment.clients)
    return open_run(folder, experiment, {c: [data] for c in files}, files)


@case
def run_folders(place: Path) -> None:
    run = Path("run")
    with refused("is no run folder (config.json is missing); train there first"):
        read_experiment(run)
    opened(run)
    read_experiment(run)
    with refused("(seed: 0 -> 3); use the same settings to resume it, or another --workdir"):
        opened(run, replace(tiny.EXPERIMENT, seed=3))
    with refused("was started on other data", "use another --workdir"):
        opened(run, data="other")
    with refused("restore the data set, or train anew"):
        check_data(run, ["other"])
    check_data(run, ["data"])
    opened(run)
    opened(Path("run2"), replace(tiny.EXPERIMENT, seed=3), "other")
    config = run / "config.json"
    whole = config.read_bytes()
    for damaged, message in ((b"{", "restore it or start anew"), (b"[]", "restore it or train")):
        config.write_bytes(damaged)
        with refused(message):
            read_experiment(run)
    config.write_bytes(whole)
    described = run / "run.json"
    before = described.read_bytes()
    described.write_bytes(b"[]")
    with refused("restore it, or train anew in another folder"):
        opened(run)
    described.write_bytes(before)
    opened(run)
    config.unlink()
    (run / "checkpoints" / "3").mkdir(parents=True)
    with refused("restore it, or use another --workdir"):
        opened(run)
    config.write_bytes(whole)
    opened(run)
    with refused("name a folder of its own, such as --workdir NAME"):
        opened(Path())
    opened(Path("NAME"))
    Path("file").write_text("no folder")
    with refused("choose another --workdir"):
        opened(Path("file"))
    with refused("put {client} into the name of the file"):
        secret_files(run, Path("a.secret"), range(2), 2)
    assert len(set(secret_files(run, Path("a{client}.secret"), range(2), 2).values())) == 2
    two = replace(tiny.EXPERIMENT, clients=2)
    files = secret_files(Path("two"), None, range(2), 2)
    write_secret(files[0], secret_key())
    shutil.copy(files[0], files[1])
    with refused("remove the copy, and a new one is made"):
        opened(Path("two"), two)
    files[1].unlink()
    opened(Path("two"), two)
    jax.config.update("jax_enable_x64", True)
    try:
        with refused("JAX_ENABLE_X64 is set", "unset it"):
            check_precision()
    finally:
        jax.config.update("jax_enable_x64", False)
    check_precision()


@case
def secrets(place: Path) -> None:
    file = Path("a.secret")
    with refused("restore the file, or start a new run in another folder"):
        read_secret(file)
    with refused("keep the seed instead"):
        write_secret(file, insecure_secret(1))
    key = secret_key()
    write_secret(file, key)
    with refused("exists already; name another one"):
        write_secret(file, key)
    write_secret(Path("b.secret"), key)
    with without_modes(), refused("could read c.secret", "put it on another one"):
        write_secret("c.secret", key)
    write_secret("c.secret", key)
    with refused("cannot write a secret below a.secret"):
        write_secret(file / "c.secret", key)
    file.chmod(0o644)
    with refused("run 'chmod 600 a.secret'"):
        read_secret(file)
    file.chmod(0o600)
    with without_modes(), refused("move it to another file system first"):
        read_secret(file)
    read_secret(file)
    whole = file.read_text()
    file.write_text("12")
    with refused("restore it from a copy, or start anew with another one"):
        read_secret(file)
    file.write_text(whole)
    read_secret(file)
    Path("folder").mkdir()
    with refused("secret file folder cannot be read"):
        read_secret("folder")


@case
def checkpoints(place: Path) -> None:
    folder = place / "run" / "checkpoints"
    folder.parent.mkdir()
    folder.write_text("in the way")
    with refused("move it away, or choose another --workdir"):
        Checkpoints(folder)
    folder.rename(place / "away")
    kept = Checkpoints(folder)
    with refused("train first"):
        kept.best_step()
    with refused("wait for it, or choose another --workdir"):
        Checkpoints(folder)
    Checkpoints(place / "other" / "checkpoints").close()
    for step in (1, 2):
        kept.save(step, jax.device_put(STATE), 0.5)
    kept.close()
    assert Checkpoints(folder, read_only=True).best_step() == 2
    metrics = folder / "2" / "metrics" / "metrics"
    metrics.write_text("{")
    with refused("start the training again, which mends it"):
        Checkpoints(folder, read_only=True)
    with warned("this checkpoint is not taken for the best"):
        kept = Checkpoints(folder)
    for data in (folder / "2").glob("default/d/*"):
        data.write_bytes(b"x")
    (folder / "2" / "default" / "manifest.ocdbt").unlink()
    with refused("checkpoint 2 in"):
        kept.restore(ABSTRACT, 2, ONE_DEVICE)
    with warned("trying the one before"):
        assert kept.restore_newest(ABSTRACT, ONE_DEVICE) is not None
    assert kept.steps() == [1]
    (folder / "1" / "default" / "manifest.ocdbt").unlink()
    with refused("start anew in another --workdir"):
        kept.restore_newest(ABSTRACT, ONE_DEVICE)
    kept.close()
    kept = Checkpoints(place / "new" / "checkpoints")
    with files_up_to(100), refused("mend that, and the same command goes on"), writing(folder):
        Path("x").write_bytes(bytes(1000))
    with writing(folder):
        Path("x").write_bytes(bytes(1000))
    kept.close()


@case
def scoring_a_damaged_checkpoint(place: Path) -> None:
    import eval as program

    experiment, folder = tiny.EXPERIMENT, place / "run" / "checkpoints"
    model = make_model(experiment.encoder, tiny.SHAPE, tiny.CLASSES)
    optimizer = make_optimizer(experiment.optimizer, 1, 1)
    state = jax.jit(partial(init_state, model, optimizer))(jax.random.key(0))
    kept = Checkpoints(folder)
    for step in (1, 2):
        kept.save(step, state, 0.5)
    kept.close()
    (folder / "2" / "default" / "manifest.ocdbt").unlink()
    arguments = program.Arguments(Path("run"))
    with refused("start the training again, which goes on from the one before it"):
        program.restore(arguments, experiment, model)
    abstract = jax.eval_shape(lambda: state)
    again = Checkpoints(folder)
    assert again.restore_newest(abstract, ONE_DEVICE) is not None
    again.close()
    program.restore(arguments, experiment, model)


@case
def metrics_and_losses(place: Path) -> None:
    file = Path("metrics.jsonl")
    file.write_text('{"step": 1}\nx\n{"step": 2}\n')
    with warned("line 2 cannot be read; left out from there on"):
        assert read_metrics(file) == [{"step": 1}]

    class State(NamedTuple):
        step: int
        kernel: jax.Array

    state: Any = State(1, jnp.ones(3))
    with refused("lower the learning rate, in another --workdir"):
        check_finite({1: jnp.float32(np.nan)}, state, 5)
    check_finite({1: jnp.float32(2)}, state, 5)


@case
def jobs(place: Path) -> None:
    port = _free_port()
    for arguments, message in (
        ((None, 2, 0), "need --coordinator HOST:PORT too"),
        (("auto", 2, 0), "leave them out"),
        (("nowhere", 2, 0), "give HOST:PORT, or 'auto'"),
        ((f"localhost:{port}", None, 0), "needs --num-processes and --process-id too"),
        ((f"localhost:{port}", 2, 2), "from 0 on, below the number of processes"),
        ((f"localhost:{port}", 2, 0, 0), "give at least 1 second"),
        (("localhost:99999", 2, 0), "name this host, and a port below 65536"),
    ):
        with refused(message):
            join(*arguments)
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        with refused("give another port"):
            join(f"localhost:{taken.getsockname()[1]}", 2, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.distributed, "initialize", lambda **_: None)
        patch.setenv("SLURM_NTASKS", "4")
        with refused("pass --coordinator auto, or unset SLURM_NTASKS"):
            join(None, None, None)
        join("auto", None, None)
        patch.delenv("SLURM_NTASKS")
        join(None, None, None)
        for processes in (2, 1):  # with every remedy above; JAX sees one process here
            with _expected(processes == 2):
                join(f"localhost:{_free_port()}", processes, 0, 1)


@contextmanager
def _expected(alone: bool) -> Iterator[None]:
    if alone:
        with refused("does this platform support several processes?"):
            yield
    else:
        yield


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@case
def devices(place: Path) -> None:
    with refused("use a multiple or a divisor of 8"):
        make_mesh(3)
    for clients in (2, 16):
        make_mesh(clients)
    mesh = make_mesh(1)
    with refused("use 16 or 24"):
        check_batch_size(20, mesh)
    for size in (16, 24):
        check_batch_size(size, mesh)
    with refused("fall into groups of 2, 3, 6, 12, 24, 48: use one of these"):
        check_batch_size(48, mesh, 1, 5)
    for group in (2, 3, 6, 12, 24, 48):
        check_batch_size(48, mesh, 1, group)
    with refused("use 'shard_map'"):
        check_device_map("pmap", 2)
    check_device_map("shard_map", 2)
    found = [Collective("all-reduce", (("f32", ()),), ((0, 7),), 4)]
    with refused("must be one of client, data"):
        crossing(found, mesh, "clients")
    with refused("give the mesh that the program was compiled for"):
        crossing(found, make_mesh(1, jax.devices()[:4]), "data")
    crossing(found, mesh, "data")


@case
def tasks_on_images(place: Path) -> None:
    import train

    experiment = replace(tiny.EXPERIMENT, data=Mnist5k(validation=3980), batch_size=8)
    for bad, message, good in (
        ({"batch_size": 24}, "more than the 20 training examples; lower it", {"batch_size": 16}),
        (
            {"batch_size": 24, "clients": 2},
            "one of whom has fewer of the 20 training examples; lower it",
            {"batch_size": 16, "clients": 2},
        ),
        (
            {"clients": 2, "client_data": "own"},
            "start a process for each client, or use 'parts'",
            {"clients": 2, "client_data": "parts"},
        ),
    ):
        changed = replace(experiment, **bad)
        with refused(message):
            train.open_task(changed, range(changed.clients))
        changed = replace(experiment, **good)
        train.open_task(changed, range(changed.clients))
    with refused("give an ImageExperiment or a TextExperiment"):
        train.open_task(Experiment(experiment.encoder, experiment.scheme), range(1))
    cross = replace(experiment, scheme=InstaHide.cross(k=6), public_pool=PoolHeldOut(3))
    with refused("every mixture needs 4 distinct ones: give more, or lower scheme.k"):
        open_images(cross, [0])
    open_images(replace(cross, public_pool=PoolHeldOut(4)), [0])
    open_images(replace(cross, scheme=InstaHide.cross(k=5)), [0])
    tiny.write_tfds("d", "tiny", {"train": tiny.labelled(12), "test": tiny.labelled(4)})
    stream = TfdsStream(
        name="tiny", train="train[:8]", validation="train[8:]", resize=8, mean=(0.5,), std=(0.5,),
        data_dir="d",
    )  # fmt: skip
    streamed = replace(experiment, data=stream, public_pool=PoolFile("not read"))
    streamed = replace(streamed, data=replace(stream, test="test"))
    with refused("set partners to 'batch' for a stream"):
        open_images(streamed, [0])
    open_images(replace(streamed, partners="batch"), [0])
    small, other = tiny.labelled(2), tiny.labelled(4, (6, 6, 3))
    facts = Statistics((0.5,), (0.5,))

    def of(arrays: Any) -> ClientImages:
        shape = arrays.images.shape[1:]
        return ClientImages(Dataset(arrays, arrays, arrays, facts, shape, "x"), None, [])

    with refused("lower clients, or give more"):
        image_part(of(small).dataset, None, 0, 3)
    image_part(of(small).dataset, None, 0, 2)
    with refused("need images of one shape with the same classes"):
        agree({0: of(small), 1: of(other)})
    agree({0: of(small), 1: of(small)})


@case
def tasks_on_texts(place: Path) -> None:
    own = replace(tiny_text.EXPERIMENT, clients=2, client_data="own")
    with refused("set data.tokenizer to a folder with one for all"):
        open_texts(own, [0])
    folder = Path(__file__).parent / "golden" / "bert"
    encoder = replace(own.encoder, vocab_size=108)
    open_texts(replace(own, encoder=encoder, data=replace(own.data, tokenizer=str(folder))), [0])
    inter = replace(
        tiny_text.EXPERIMENT,
        scheme=replace(tiny_text.EXPERIMENT.scheme, num_private=2),
        public_text=SyntheticText(count=4),
    )
    with refused("give more, or lower batch_size"):
        open_texts(inter, [0])
    open_texts(replace(inter, public_text=SyntheticText(count=8)), [0])
    open_texts(replace(inter, batch_size=4), [0])

    def classes(*names: str, class_names: tuple[str, ...] = ()) -> TextExperiment:
        path = place / f"{''.join(names)}.csv"
        rows = "".join(f"a {i},{names[i % len(names)]}\n" for i in range(20))
        path.write_text("text,label\n" + rows)
        table = TableText(str(path), class_names=class_names)
        data = replace(own.data, train=table, test=table, validation=4)
        return replace(tiny_text.EXPERIMENT, data=data)

    def facts(*experiments: TextExperiment) -> None:
        agree_on_texts({c: open_texts(e, [0])[0][0] for c, e in enumerate(experiments)})

    with refused("all clients need the same: set the class_names of tables (TableText)"):
        facts(classes("x", "y"), classes("x", "z"))
    names = ("x", "y", "z")
    facts(classes("x", "y", class_names=names), classes("x", "z", class_names=names))
