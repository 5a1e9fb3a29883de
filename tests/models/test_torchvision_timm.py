import importlib
from types import ModuleType

import pytest
import torch
from support.foreign import importable
from torch import nn

from steppe.errors import InputError
from steppe.models import build
from steppe.models.torchvision_timm import replace_input_layer


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named it"), RuntimeError("no operator\nat all")])
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_a_package_that_cannot_be_imported_is_one_line_with_the_install_command(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(package: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(InputError) as caught:
        build(name, classes=10, channels=3, size=32)
    assert "pip install 'steppe[vision]'" in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_replace_input_layer_keeps_the_settings_of_the_first_convolution_or_refuses() -> None:
    old = nn.Conv2d(3, 4, (3, 5), stride=2, padding=1, bias=False)
    net = nn.Sequential(nn.Sequential(nn.Identity(), old), nn.Conv2d(4, 4, 1))
    replace_input_layer(net, 1)
    new = net.get_submodule("0.1")
    assert isinstance(new, nn.Conv2d)
    assert new.weight.shape == (4, 1, 3, 5)
    assert (new.stride, new.padding, new.bias) == ((2, 2), (1, 1), None)
    assert net(torch.zeros(1, 1, 9, 9)).shape[1] == 4
    with pytest.raises(InputError, match="no convolution"):
        replace_input_layer(nn.Sequential(nn.Linear(1, 1)), 1)
    with pytest.raises(InputError, match="groups"):
        replace_input_layer(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3)), 1)


class _Timm(ModuleType):
    """What is used of timm, with the weights of one network, or without a network to fetch them by."""

    def __init__(self, offline: bool) -> None:
        super().__init__("timm")
        self.offline = offline

    def list_models(self) -> list[str]:
        return ["small"]

    def create_model(self, name: str, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        if pretrained and self.offline:
            raise OSError("no route to host\nand more")
        net = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 64, num_classes))
        nn.init.constant_(net[1].weight, float(pretrained))
        return net


def test_a_timm_model_starts_from_published_weights_if_its_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda _: _Timm(offline=False))
    x = torch.ones(1, 3, 8, 8)
    fresh, trained = (build(f"timm/small{how}", classes=2, channels=3, size=8) for how in ("", ":pretrained"))
    assert (trained(x) - fresh(x)).detach()[0, 0].item() == pytest.approx(3 * 64, abs=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/small:pretrained", r"of 'timm/small:pretrained' cannot be loaded \(no route.*write timm/small$"),
        ("timm/small:trained", "starts from 'trained'; write timm/small or timm/small:pretrained"),
        ("timm/smal:pretrained", "unknown model 'timm/smal:pretrained'; did you mean 'timm/small'"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda _: _Timm(offline=True))
    with pytest.raises(InputError, match=message) as caught:
        build(name, classes=2, channels=3, size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.vision
@pytest.mark.parametrize("package", ["torchvision", "timm"])
class TestInstalledPackage:
    @pytest.fixture(autouse=True)
    def _installed(self, package: str) -> None:
        importable(package)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_resnet18_has_these_channels_and_classes(self, package: str, channels: int) -> None:
        net = build(f"{package}/resnet18", classes=7, channels=channels, size=32)
        assert net.training
        assert all(m.training for m in net.modules())
        assert net(torch.rand(2, channels, 32, 32)).shape == (2, 7)

    def test_building_leaves_batchnorm_statistics_fresh(self, package: str) -> None:
        net = build(f"{package}/resnet18", classes=2, channels=3, size=16)
        moved = [b for name, b in net.named_buffers() if name.endswith(("running_mean", "num_batches_tracked"))]
        assert moved
        assert not any(b.any() for b in moved)

    def test_a_misspelt_network_is_refused_with_the_nearest(self, package: str) -> None:
        with pytest.raises(InputError, match=f"did you mean .*'{package}/resnet18'"):
            build(f"{package}/resnet-18", classes=7, channels=3, size=32)

    def test_a_size_that_cannot_pass_is_refused_with_one_that_can(self, package: str) -> None:
        name = {"torchvision": "torchvision/alexnet", "timm": "timm/vit_tiny_patch16_224"}[package]
        size = {"torchvision": 64, "timm": 224}[package]
        with pytest.raises(InputError, match=f"{name} cannot take images of 8x8; set data.size to {size}"):
            build(name, classes=7, channels=3, size=8)


@pytest.mark.vision
def test_googlenet_gives_a_tensor_in_training_mode() -> None:
    importable("torchvision")
    net = build("torchvision/googlenet", classes=3, channels=3, size=32)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3)
