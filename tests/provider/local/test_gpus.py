"""GPUs for sandboxes, as far as that needs none: which nodes one gets, and what is said where some are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import NeverFitsError
from gateway.core.model import Requests, SessionId
from gateway.provider.local import LocalProvider
from gateway.provider.local.booking import Ledger
from gateway.provider.local.gpus import Gpus, find_gpus
from gateway.provider.local.machine import capacity
from tests.support.local_engine import KEY, python, runtime

NODES = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia-caps/nvidia-cap12",
         "nvidia-caps/nvidia-cap13")  # fmt: skip


class Fake:
    """A /dev, a /proc/driver/nvidia and a folder of libraries like those of a machine with two GPUs."""

    def __init__(self, folder: Path) -> None:
        self.dev, self.driver, self.libraries = folder / "dev", folder / "driver", folder / "lib"
        for name in NODES:
            (self.dev / name).parent.mkdir(parents=True, exist_ok=True)
            (self.dev / name).write_text(name)
        instance = self.driver / "capabilities" / "gpu1" / "mig" / "gi2"
        for place, minor in ((instance, 12), (instance / "ci0", 13)):
            place.mkdir(parents=True)
            (place / "access").write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\n")
        self.libraries.mkdir()
        (self.libraries / "libcuda.so.1").write_text("")

    def find(self, setting: str = "auto") -> Gpus:
        return find_gpus(setting, dev=self.dev, driver=self.driver, libraries=[str(self.libraries)])


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_sandbox_gets_the_nodes_of_its_own_gpu_and_the_drivers(fake: Fake) -> None:
    """Of the whole GPU that it has; by default all whole ones may be had."""
    found = fake.find()
    assert list(found.nodes) == ["0", "1"]
    assert set(found.devices(["1"])) == {"/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-modeset"}
    assert found.devices(["1"])["/dev/nvidia1"] == str(fake.dev / "nvidia1")
    assert found.environment(["1"]) == {"NVIDIA_VISIBLE_DEVICES": "1", "LD_LIBRARY_PATH": str(fake.libraries)}
    assert found.devices([]) == found.environment([]) == {}
    assert fake.find("none").nodes == {}


def test_mig_instance_has_its_capabilities_besides_its_gpu(fake: Fake) -> None:
    """The nodes by which the driver allows this instance, and no other."""
    (nodes,) = fake.find("1/2/0").nodes.values()
    assert set(nodes) == {
        "/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13", "/dev/nvidiactl",
        "/dev/nvidia-uvm", "/dev/nvidia-modeset",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("2", "GPU 2: .*nvidia2 is not there; load the driver"),
        ("1/3/0", "gi3/access is not there: there is no such MIG instance"),
        ("first", "'first' is no GPU; expected an index such as 0, or GPU/GI/CI"),
        ("../0", "is no GPU"),
        ("0,0", "GPU 0 is named twice"),
        ("1,1/2/0", "GPU 1/2/0 is named twice, or as a whole and in instances"),
        (",", "no NVIDIA GPU"),
    ],
)
def test_gpu_that_is_named_and_cannot_be_had_says_what_is_missing(fake: Fake, setting: str, says: str) -> None:
    """So that the gateway does not start without it."""
    with pytest.raises(ValueError, match=says):
        fake.find(setting)


def test_machine_without_a_gpu_says_so_in_the_refusal(fake: Fake, tmp_path: Path) -> None:
    """What it lacks: the device, a node of the driver, its library."""
    asked = Requests(gpus=1)

    def refusal() -> str:
        return Ledger(capacity(gpus=fake.find())).never_fits(asked)

    assert refusal() == ""
    (fake.libraries / "libcuda.so.1").unlink()
    assert "libcuda.so.1 is in none of" in refusal()
    (fake.libraries / "libcuda.so.1").write_text("")
    (fake.dev / "nvidia-uvm").unlink()
    assert "nvidia-uvm is not there; load the driver" in refusal()
    fake.dev = tmp_path / "elsewhere"
    assert "gpu: it requests 1, and 0 of 0 is free" in refusal()
    assert "no NVIDIA GPU, or no driver for it" in refusal()


async def test_real_sandbox_uses_the_node_of_its_gpu_and_sees_no_other(fake: Fake, tmp_path: Path) -> None:
    """With /dev/zero in its place: it reads from it, and cannot change it. The second sandbox gets the other GPU."""
    for name in NODES[:5]:
        (fake.dev / name).unlink()
        (fake.dev / name).symlink_to("/dev/zero")  # a node of our own would need root, and a file system that takes it
    gpus = fake.find()
    served = runtime(requests=Requests(gpus=1))
    provider = LocalProvider(tmp_path / "s", tmp_path / "k", SystemClock(), gpus=gpus)
    await provider.apply([served])
    await provider.start()
    try:
        code = (
            "import os\nown = [name for name in os.listdir('/dev') if name[:6] == 'nvidia' and name[6:].isdigit()]\n"
            "print(own, open('/dev/' + own[0], 'rb').read(2), os.environ['NVIDIA_VISIBLE_DEVICES'])\n"
            "try:\n    os.chmod('/dev/' + own[0], 0o666)\nexcept OSError as error:\n    print(error.strerror)"
        )
        seen = [await python(await provider.claim(KEY, SessionId(f"s{n}")), code) for n in range(2)]
        assert sorted(seen) == [f"['nvidia{n}'] b'\\x00\\x00' {n}\nOperation not permitted" for n in range(2)]
        assert provider.booked()["gpu"] == 2
    finally:
        await provider.aclose()
    provider = LocalProvider(tmp_path / "s", tmp_path / "k", SystemClock())
    await provider.apply([served])
    await provider.start()
    try:
        with pytest.raises(NeverFitsError, match="gpu"):
            await provider.claim(KEY, SessionId("s1"))
    finally:
        await provider.aclose()
