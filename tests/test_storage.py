"""Files that are whole or not there, and models that come back bit for bit."""

import errno
import json
import os
import stat
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small import SMALL, small_network

from ddpm_lite import GaussianDiffusion, NoiseSchedule, storage
from ddpm_lite.storage import (
    load_model,
    read_json,
    read_tensors,
    save_model,
    shipped,
    to_json,
    write_atomically,
    write_tensors,
)
from ddpm_lite.unet import PRESETS, UNet

DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(20))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- whole files ------------------------------------------------------------------------------


@settings(max_examples=20)
@given(before=st.binary(max_size=100), after=st.binary(max_size=100))
def test_what_is_written_is_read(tmp_path_factory, before, after):
    path = tmp_path_factory.mktemp("folder") / "file"
    for content in (before, after):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["file"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "file"
    contents = [b"a" * 300_000, b"b" * 200_000]
    write_atomically(path, contents[0])
    done = threading.Event()

    def write():
        for i in range(100):
            write_atomically(path, contents[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= set(contents)


def test_the_file_gets_the_permissions_that_any_new_file_gets(tmp_path):
    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "file", b"x")
    usual, mode = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("usual", "file"))
    assert mode == usual


def test_the_order_is_write_sync_rename_sync(tmp_path, monkeypatch):
    """On the disk before it has the name; and then the name too."""
    calls = []
    sync, rename = os.fsync, os.replace

    def note_sync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("folder" if is_folder else f"file of {os.fstat(descriptor).st_size}")
        sync(descriptor)

    def note_rename(a, b):
        calls.append("rename")
        rename(a, b)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_atomically(tmp_path / "file", b"12345")
    assert calls == ["file of 5", "rename", "folder"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError) as caught:
            write_atomically(path, b"new")
    sentence = f"could not write {path}: No space left on device; the file there is as it was."
    assert str(caught.value) == sentence
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "file", b"new")
    assert names(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"could not write .*nowhere/file: No such file"):
        write_atomically(tmp_path / "nowhere" / "file", b"x")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"could not write .*/file: Permission denied"):
        write_atomically(tmp_path / "file", b"x")


def test_what_killed_writers_left_is_cleared_and_only_that(tmp_path):
    for name in (".model.json.123.partial", "model.json", ".hidden", "a.partial"):
        (tmp_path / name).touch()
    storage.clear_partial_files(tmp_path)
    assert names(tmp_path) == [".hidden", "a.partial", "model.json"]


# ---- JSON and tensors -------------------------------------------------------------------------


def test_json_keeps_every_float(tmp_path):
    record = {"a": [0.1, 1e-300, -0.0, 1 / 3], "é": None, "b": {"c": True}}
    write_atomically(tmp_path / "file", to_json(record))
    assert read_json(tmp_path / "file") == record


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(1), {1, 2}])
def test_json_refuses_what_it_has_no_form_for(value):
    with pytest.raises(ValueError, match="the record cannot be written as JSON: "):
        to_json({"value": value})


@pytest.mark.parametrize("text", ["", '{"a": 1', "\xff"])
def test_half_a_json_file_is_named(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"file\.json is not a whole JSON file"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"file\.json must hold a JSON object, got list\."):
        read_json(path)


TENSORS = {
    "float64": torch.tensor([0.1, -0.0, torch.inf, torch.nan], dtype=torch.float64),
    "bf16": torch.randn(3, 2).bfloat16(),
    "int": torch.arange(6).reshape(2, 3).T,
    "bytes": torch.arange(7, dtype=torch.uint8),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


def test_tensors_come_back_bit_for_bit(tmp_path):
    write_tensors(tmp_path / "file", TENSORS, {"what": "é"})
    found, record = read_tensors(tmp_path / "file")
    assert record == {"what": "é"}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(
            found[name].view(-1).view(torch.uint8), tensor.flatten().view(torch.uint8)
        )
        assert found[name].shape == tensor.shape


def test_equal_tensors_give_equal_bytes(tmp_path):
    write_tensors(tmp_path / "one", TENSORS, {"a": 1, "b": 2})
    write_tensors(tmp_path / "two", dict(reversed(TENSORS.items())), {"a": 1, "b": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    write_tensors(tmp_path / "file", TENSORS, {})
    found, _ = read_tensors(tmp_path / "file")
    with open(tmp_path / "file", "r+b") as file:
        file.write(b"\0" * (tmp_path / "file").stat().st_size)
    assert torch.equal(found["int"], TENSORS["int"])


# ---- models -----------------------------------------------------------------------------------


DIFFUSIONS = {
    "linear": DIFFUSION,
    "cosine, x0, beta": GaussianDiffusion(NoiseSchedule.cosine(30), "x0", "beta"),
    "v, no signal at the end": GaussianDiffusion(NoiseSchedule.from_alpha_bar([1, 0.5, 0]), "v"),
    "respaced": GaussianDiffusion(NoiseSchedule.linear(1000).respace([1, 17, 1000])),
    "learned": GaussianDiffusion(NoiseSchedule.linear(20), "eps", "learned"),
}


@pytest.mark.parametrize("kind", DIFFUSIONS)
def test_a_model_comes_back_bit_for_bit(tmp_path, kind):
    network, diffusion = small_network(), DIFFUSIONS[kind]
    about = {"data": "noise", "levels": 17, "training": {"loss": [0.1, None]}}
    save_model(tmp_path / "made" / "for it", network, diffusion, about)
    model = load_model(tmp_path / "made" / "for it")
    assert model.about == about
    assert model.network.config == network.config
    assert not model.network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name
    assert model.diffusion.schedule == diffusion.schedule
    assert model.diffusion.prediction == diffusion.prediction
    assert model.diffusion.variance == diffusion.variance
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([1, 3])
    assert torch.equal(model.network(x, t), network.eval()(x, t))


def test_every_small_preset_can_be_stored(tmp_path):
    for name, config in PRESETS.items():
        if config.base_channels <= 64:
            save_model(tmp_path / name, UNet(config, torch.Generator()), DIFFUSION, {})
            assert load_model(tmp_path / name).network.config == config


def test_model_json_says_what_the_weights_carry(tmp_path):
    save_model(tmp_path, small_network(), DIFFUSION, {"data": "noise"})
    assert names(tmp_path) == ["model.json", "model.safetensors"]
    record = json.loads((tmp_path / "model.json").read_text())
    assert record == read_tensors(tmp_path / "model.safetensors")[1]
    assert record["format"] == "ddpm-lite model 1"
    assert record["diffusion"] == {"T": 20, "prediction": "eps", "variance": "posterior"}
    assert record["network"]["base_channels"] == 4
    assert record["about"] == {"data": "noise"}


def test_the_weights_are_enough(tmp_path):
    save_model(tmp_path, small_network(), DIFFUSION, {})
    (tmp_path / "model.json").unlink()
    assert load_model(tmp_path).network.config == SMALL


def test_saving_again_replaces_the_model(tmp_path):
    for seed in (0, 1):
        save_model(tmp_path, small_network(seed), DIFFUSION, {"seed": seed})
    model = load_model(tmp_path)
    wanted = small_network(1).state_dict()
    assert model.about == {"seed": 1}
    assert all(torch.equal(t, wanted[n]) for n, t in model.network.state_dict().items())


def test_a_network_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"a model file needs a UNet, .* got Linear"):
        save_model(tmp_path / "new", torch.nn.Linear(1, 1), DIFFUSION, {})
    assert names(tmp_path) == []


def test_broken_weights_are_not_written(tmp_path):
    network = small_network()
    with torch.no_grad():
        network.conv_in.bias[1] = torch.nan
    with pytest.raises(ValueError, match=r"the weight 'conv_in\.bias' holds NaN or infinity"):
        save_model(tmp_path / "new", network, DIFFUSION, {})
    assert names(tmp_path) == []


def test_what_json_cannot_say_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        save_model(tmp_path / "new", small_network(), DIFFUSION, {"loss": float("nan")})
    assert names(tmp_path) == []


# ---- damaged and foreign models ---------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    save_model(tmp_path, small_network(), DIFFUSION, {"data": "noise"})
    return tmp_path


def rewrite(folder, change):
    """Put back the model after `change(tensors, record)`."""
    tensors, record = read_tensors(folder / "model.safetensors")
    change(tensors, record)
    write_tensors(folder / "model.safetensors", tensors, record)
    (folder / "model.json").unlink()


def refused(folder, sentence, error=ValueError):
    with pytest.raises(error) as caught:
        load_model(folder)
    assert sentence in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_model_at_all(tmp_path):
    refused(tmp_path, "it holds no model.safetensors", FileNotFoundError)
    refused(tmp_path / "nowhere", "there is no model in", FileNotFoundError)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file(saved, share):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(saved, "model.safetensors is truncated or not a safetensors file")


def test_a_file_of_another_kind(saved):
    (saved / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"a pickle, say" * 100)
    refused(saved, "model.safetensors is truncated or not a safetensors file")


def test_weights_of_another_program(saved):
    save_file({"conv_in.weight": torch.ones(1)}, saved / "model.safetensors")
    refused(saved, "was not written by ddpm_lite")


def test_another_file_of_ours(saved):
    rewrite(saved, lambda tensors, record: record.update(format="ddpm-lite checkpoint 1"))
    refused(saved, "is not a model but 'ddpm-lite checkpoint 1'; wanted 'ddpm-lite model 1'")


DAMAGE = {
    "lacks the tensor 'network.conv_in.bias'.": lambda t, r: t.pop("network.conv_in.bias"),
    "'network.conv_in.bias' must have shape (4,), got (5,).": lambda t, r: t.update(
        {"network.conv_in.bias": torch.ones(5)}
    ),
    "'network.conv_in.bias' must have dtype torch.float32, got torch.float64.": lambda t, r: (
        t.update({"network.conv_in.bias": torch.ones(4).double()})
    ),
    "holds a tensor 'network.more' that has no place here.": lambda t, r: t.update(
        {"network.more": torch.ones(1)}
    ),
    "lacks 'schedule.log_alpha_bar'": lambda t, r: t.pop("schedule.log_alpha_bar"),
    "the diffusion it describes is refused: alpha_bar must fall": lambda t, r: t.update(
        {"schedule.log_alpha_bar": torch.zeros(21, dtype=torch.float64)}
    ),
    "refused: prediction must be one of": lambda t, r: r["diffusion"].update(prediction="noise"),
    "lacks 'variance'": lambda t, r: r["diffusion"].pop("variance"),
    "its record lacks 'network'": lambda t, r: r.pop("network"),
    "the network it describes is refused": lambda t, r: r["network"].update(colour="red"),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_a_model_whose_parts_do_not_fit(saved, sentence):
    rewrite(saved, DAMAGE[sentence])
    refused(saved, sentence)


def test_an_edited_description_is_refused_not_chosen_from(saved):
    record = read_json(saved / "model.json")
    record["diffusion"]["variance"] = "beta"
    (saved / "model.json").write_bytes(to_json(record))
    refused(saved, "model.json says something else than the record inside model.safetensors")


def test_a_larger_network_does_not_take_the_weights_of_a_smaller_one(saved):
    rewrite(saved, lambda t, r: r.update(network=replace(SMALL, blocks_per_level=2).to_dict()))
    refused(saved, "model.safetensors lacks the tensor 'network.")


def test_an_unknown_shipped_model_is_refused_by_naming_those_there_are():
    with pytest.raises(ValueError, match=r"the models that come with the book are .*'cats'"):
        shipped("cats")
