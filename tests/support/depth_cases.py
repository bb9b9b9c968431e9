"""Small deep networks, batches for them, and another way to leave layers out: hooks hand on the stream."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from slimfast.checkpoints.torchvision_ops import prepare_torchvision

prepare_torchvision()
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 48}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "max_position_embeddings": 48}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random biases and norms too, so that nothing is right because it is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def llama(layers=5, **more):
    config = transformers.LlamaConfig(
        **TOKENS, **SIZES, num_key_value_heads=2, num_hidden_layers=layers, **more
    )
    torch.manual_seed(0)
    return shaken(transformers.LlamaForCausalLM(config))


def qwen2(layers=4):
    """Sliding windows in the later layers, which its configuration lists."""
    config = transformers.Qwen2Config(
        **TOKENS,
        **SIZES,
        num_key_value_heads=2,
        num_hidden_layers=layers,
        use_sliding_window=True,
        max_window_layers=2,
        sliding_window=4,
    )
    torch.manual_seed(0)
    return shaken(transformers.Qwen2ForCausalLM(config))


def gpt2(layers=4, **more):
    config = transformers.GPT2Config(**TOKENS, n_embd=16, n_layer=layers, n_head=4, n_positions=48, **more)
    torch.manual_seed(0)
    return shaken(transformers.GPT2LMHeadModel(config))


def opt(layers=3):
    """Its MLPs read tokens in one long row."""
    config = transformers.OPTConfig(
        vocab_size=48, hidden_size=16, ffn_dim=24, num_attention_heads=4, word_embed_proj_dim=16,
        num_hidden_layers=layers, max_position_embeddings=48,
    )  # fmt: skip
    torch.manual_seed(0)
    return shaken(transformers.OPTForCausalLM(config))


def bert(layers=4):
    config = transformers.BertConfig(vocab_size=48, **SIZES, num_hidden_layers=layers)
    torch.manual_seed(0)
    return shaken(transformers.BertModel(config))


def t5(layers=3):
    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_ff=24, d_kv=4, num_heads=4, decoder_start_token_id=0,
        num_layers=layers, num_decoder_layers=layers + 1,
    )  # fmt: skip
    torch.manual_seed(0)
    return shaken(transformers.T5ForConditionalGeneration(config))


def tokens(samples=2, length=10, seed=0, padding=0):
    """Tokens with so many positions of padding on the left of the first sample."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 48, (samples, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def bypassed(model: nn.Module, names, call):
    """Run ``model`` with the layers of these names handing on what they read."""

    def hand_on(module, args, kwargs, output):
        x = args[0] if args else kwargs["hidden_states"]
        return x if isinstance(output, torch.Tensor) else (x, *output[1:])

    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(hand_on, with_kwargs=True)
            hooks.callback(handle.remove)
        return scores(model(**call) if isinstance(call, dict) else model(call))


def scores(output):
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if found is not None:
            return found
    return output


class Basic(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        inner = width // stride
        self.conv1 = nn.Conv2d(inner, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(inner, width, 1, stride) if stride > 1 else None

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        out += x if self.down is None else self.down(x)
        return out.relu_()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.stage1 = nn.Sequential(*(Basic(8) for _ in range(3)))
        self.stage2 = nn.Sequential(Basic(16, 2), Basic(16), Basic(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


class PreNorm(nn.Module):
    """x + out(gelu(inner(norm(x))))."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, width, bias=bias)

    def forward(self, x):
        return x + self.out(nn.functional.gelu(self.inner(self.norm(x))))


class Mlps(nn.Module):
    """Residual MLPs one behind the other, and a head."""

    def __init__(self, layers: int = 4, width: int = 6, bias: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PreNorm(width, bias) for _ in range(layers))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class UNet(nn.Module):
    """A block whose output is read again further on."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(PreNorm(6) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(12, 6) for _ in range(2))

    def forward(self, x):
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        for layer, skip in zip(self.up, kept[1::-1], strict=True):
            x = layer(torch.cat([x, skip], -1))
        return x
