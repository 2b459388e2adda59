"""BatchNorm over all processes changes nothing else of a network: neither what it computes nor what it is made of."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from config_files import CONFIGS, tree
from safetensors.torch import load_file
from test_equal_ranks import processes
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SplitBatchNorm2d
from tiny_runs import settings
from torch import nn

from rdcd.errors import UserError
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.training import collectives, fit
from rdcd.training.collectives import gather
from rdcd.training.module import CopyDetection, Optimization
from rdcd.training.objectives import RDCD

NAMED = sorted({tree(path)["trunk"] for path in (CONFIGS / "student").glob("*.yaml") if "trunk" in tree(path)}
               - {"teacher"})
MORE = ["test_efficientnet", "test_resnet", "densenet121", "ghostnet_050", "lcnet_050", "mobilenetv4_conv_small",
        "mobileone_s0", "regnety_002", "repvgg_a0", "tiny_vit_5m_224"]


@pytest.fixture
def layer_sync(monkeypatch, tmp_path):
    """What a run on two GPUs gives the trainer to make BatchNorm span them."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
                        "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(fit, "device_of", lambda settings: "cuda")
    trainer = fit.make_trainer(settings(devices=2), nn.Identity(), folder=tmp_path, steps=1, callbacks=[], logger=[])
    return trainer.strategy._layer_sync


def lived_in(network, pictures):
    """Give BatchNorm the statistics of a batch, and weights that are not those of the start."""
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    with torch.no_grad():
        network.train()(pictures)


def looked_at(network, pictures):
    """Return descriptors in eval mode, and how often which kind of layer other than a norm was called for them."""
    calls: dict[str, int] = {}

    def count(layer, inputs, output):
        calls[type(layer).__name__] = calls.get(type(layer).__name__, 0) + 1

    hooks = [layer.register_forward_hook(count) for layer in network.modules()
             if not any(layer.children()) and not isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        found = network.eval().embed(pictures)
    for hook in hooks:
        hook.remove()
    return found, calls


def made_of(network):
    """Return the names and types of all modules, and the objects that hold weights and statistics."""
    return ([(name, type(module)) for name, module in network.named_modules()],
            {name: id(value) for name, value in network.named_parameters()},
            {name: value.data_ptr() for name, value in network.state_dict().items()})


@pytest.mark.parametrize("trunk", NAMED + MORE)
def test_descriptors_are_the_same_before_during_and_after(layer_sync, trunk):
    torch.manual_seed(0)
    network, side = Student(trunk=trunk, dim=8, kd_dim=16), 224 if trunk.endswith("_224") else 64
    pictures = torch.rand(3, 3, side, side)
    lived_in(network, pictures)
    (before, calls), parts = looked_at(network, pictures), made_of(network)
    assert before.isfinite().all()
    assert layer_sync.apply(network) is network
    during, calls_during = looked_at(network, pictures)
    plain = [name for name, module in network.named_modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)]
    synced = sum(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    assert plain == [] and synced == sum(issubclass(kind, nn.modules.batchnorm._BatchNorm) for _, kind in parts[0])
    assert torch.equal(during, before), (sum(calls_during.values()), sum(calls.values()),
                                         float(F.cosine_similarity(during, before).min()))
    assert calls_during == calls
    assert made_of(network)[1:] == parts[1:]
    assert layer_sync.revert(network) is network
    after, calls_after = looked_at(network, pictures)
    assert torch.equal(after, before), (sum(calls_after.values()), sum(calls.values()),
                                        float(F.cosine_similarity(after, before).min()))
    assert calls_after == calls
    assert made_of(network) == parts


def test_modes_hooks_and_options_stay(layer_sync):
    network = nn.Sequential(nn.BatchNorm1d(3, eps=1e-2), nn.BatchNorm2d(3, affine=False), nn.BatchNorm3d(3),
                            BatchNormAct2d(3, drop_layer=nn.Dropout2d, act_layer=nn.SiLU),
                            nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, momentum=None),
                            FrozenBatchNormAct2d(3)).double()
    network[2].eval(), network[0].requires_grad_(False)
    called = []
    network[3].register_forward_hook(lambda *words: called.append(words))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    parts, words = made_of(network), [repr(norm).partition("(")[2] for norm in network]
    layer_sync.apply(network)
    assert [type(norm).__name__ for norm in network] == ["SyncBatchNorm"] * 3 + ["SyncBatchNormAct"] + [
        "SyncBatchNorm"] * 2 + ["FrozenBatchNormAct2d"]
    assert [repr(norm).partition("(")[2] for norm in network] == words and made_of(network)[1:] == parts[1:]
    assert [norm.training for norm in network] == [True, True, False, True, True, True, True]
    assert [id(p) for p in network.parameters()] == [id(p) for p in optimizer.param_groups[0]["params"]]
    network.eval()[3](torch.rand(2, 3, 4, 4, dtype=torch.float64))
    assert len(called) == 1 and isinstance(network[3].act, nn.SiLU) and isinstance(network[3].drop, nn.Dropout2d)
    network[5].register_buffer("running_mean", torch.ones(3))  # as moving to a device replaces it
    layer_sync.revert(network)
    assert made_of(network)[0] == parts[0] and [repr(norm).partition("(")[2] for norm in network] == words
    assert network[5].running_mean.tolist() == [1, 1, 1] and not any(norm.training for norm in network)


def test_what_has_no_synchronized_form_is_refused(layer_sync):
    with pytest.raises(UserError, match=r"trainer.sync_batchnorm=true: layer 1 is a SplitBatchNorm2d, .* set false"):
        layer_sync.apply(nn.Sequential(nn.BatchNorm2d(4), SplitBatchNorm2d(4)))


def test_the_key_encoder_is_reached_and_the_teacher_is_not(layer_sync):
    teacher = Teacher(Student(trunk="test_resnet", dim=None, kd_dim=12))
    student = Student(trunk="test_efficientnet", dim=6, kd_dim=12)
    module = CopyDetection(student=student, objective=RDCD(student, teacher, queue_size=20), epochs=1, card={},
                           steps_per_epoch=1, global_batch=8, optimization=Optimization())
    before = made_of(teacher)
    layer_sync.apply(module)
    for network in (module.student, module.objective.key_encoder):
        assert {type(norm).__name__ for norm in network.modules()
                if isinstance(norm, nn.modules.batchnorm._BatchNorm)} <= {"SyncBatchNorm", "SyncBatchNormAct"}
    assert made_of(teacher) == before and not any(module.training for module in teacher.modules())
    layer_sync.revert(module)


def over_all(self, inputs):
    """SyncBatchNorm as it is defined: training normalizes by mean and variance of all rows of all processes."""
    if not self.training:
        return F.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
    everyone, others = gather(inputs), [0, *range(2, inputs.ndim)]
    mean, count = everyone.mean(others), everyone.numel() // everyone.shape[1]
    variance = everyone.var(others, unbiased=False)
    with torch.no_grad():
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
    shape = [1, -1, *[1] * (inputs.ndim - 2)]
    scale = self.weight * (variance + self.eps) ** -0.5
    return (inputs - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)


def as_on_gpus(make):
    """Return `make_trainer` for processes that have a GPU each, as far as BatchNorm is concerned."""
    def made(*words, **named):
        with patch.object(fit, "device_of", lambda settings: "cuda"):
            return make(*words, **named)
    return made


@pytest.fixture(scope="module")
def trained(benchmark_root, plain_run, tmp_path_factory):
    """Runs of one process and of two whose BatchNorm spans both, of a trunk whose activations are inside its norms."""
    folder, teacher = tmp_path_factory.mktemp("spanning"), plain_run / "teacher"
    with (patch.object(nn.SyncBatchNorm, "forward", over_all),
          patch.object(fit, "make_trainer", as_on_gpus(fit.make_trainer)),
          patch.object(nn.parallel.DistributedDataParallel, "_passing_sync_batchnorm_handle")):  # which wants GPUs
        return {ranks: processes(benchmark_root, teacher, folder / str(ranks), ranks, "rdcd", shuffle_bn=False,
                                 trunk="test_efficientnet") for ranks in (1, 2)}


def test_two_processes_train_the_network_of_one(trained):
    (alone, (held,)), (both, (first, second)) = trained[1], trained[2]
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (alone, both))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-3, msg=name)
    for name, value in first.items():  # statistics, too, and those of the key encoder
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, held[name], rtol=1e-3, atol=1e-3, msg=name)
