"""What AudioCraft names only in its code, and nowhere in a checkpoint: all of it is here.

Which files ``from_pretrained`` of transformers reads, where demucs has its weights, which codec a
diffusion model was trained on. When another release of AudioCraft looks for something else, this
is what changes.
"""

from __future__ import annotations

from typing import Final

from .dependency import Dependency, Group, UnmetDependency

__all__ = [
    "BUILT_IN_CODECS",
    "DAC_CODECS",
    "HARD_CODED",
    "PRETRAINED_PREFIX",
    "TEXT_ENCODERS",
    "chord_mapping",
    "clap",
    "codec",
    "dac",
    "demucs",
    "mert",
    "spacy",
    "text_encoder",
]

PRETRAINED_PREFIX: Final = "//pretrained/"
"""Before the name of a codec where a configuration could also name a checkpoint of a training."""

TEXT_ENCODERS: Final = frozenset(
    {
        *("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b"),
        *(f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
    }
)
"""The only names that the conditioner ``t5`` accepts; the cache is searched for exactly these."""

DAC_CODECS: Final = {"dac_44khz": "44khz", "dac_24khz": "24khz"}
"""Codecs of the package descript-audio-codec, with its names for them."""

BUILT_IN_CODECS: Final = frozenset({"debug_compression_model"})
"""Codecs that are made up when they are asked for."""

_TRANSFORMERS_WEIGHTS: Final[tuple[Group, ...]] = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
"""In the order in which transformers looks for them: one is enough, and one is taken."""

_TOKENIZER_FILES: Final = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files of T5: old releases of transformers read the first, new ones the second."""

_DEMUCS_URL: Final = "https://dl.fbaipublicfiles.com/demucs/hybrid_transformer/955717e8-8726e21a.th"


def text_encoder(name: str, namer: str) -> Dependency:
    """The files that ``T5Tokenizer`` and ``T5EncoderModel`` load by a name that ``namer`` holds."""
    return Dependency(
        name,
        f"the text encoder that {namer} names",
        filenames=("config.json",),
        one_of=_TRANSFORMERS_WEIGHTS,
        optional=(*_TOKENIZER_FILES, "generation_config.json"),
    )


def codec(name: str, namer: str) -> Dependency:
    """The files that transformers' ``EncodecModel`` loads by a name."""
    return Dependency(
        name,
        f"the codec that {namer} names",
        filenames=("config.json",),
        one_of=_TRANSFORMERS_WEIGHTS,
    )


def demucs(namer: str) -> Dependency:
    """The file that ``demucs.pretrained.get_model('htdemucs')`` loads through torch.hub."""
    return Dependency(_DEMUCS_URL, f"takes apart the audio that {namer} is conditioned on")


def dac(name: str, namer: str) -> UnmetDependency:
    """The weights that descript-audio-codec keeps in a directory of its own."""
    return UnmetDependency(
        f"the codec {name}",
        f"{namer} names it; descript-audio-codec looks for it in ~/.cache/descript only",
        "Fetch it as the user who runs the model: "
        f"python -m dac download --model_type {DAC_CODECS[name]}",
    )


def mert(namer: str) -> UnmetDependency:
    """The style encoder, whose repository carries Python code that is executed."""
    return UnmetDependency(
        "m-a-p/MERT-v1-95M",
        f"the style encoder of {namer}; loading it executes Python code of its repository",
        "Read that code, then: craftcache warm --file config.json --file configuration_MERT.py "
        "--file modeling_MERT.py --file pytorch_model.bin m-a-p/MERT-v1-95M",
    )


def spacy(namer: str) -> UnmetDependency:
    """The language model that a tokenizer loads from site-packages."""
    return UnmetDependency(
        "spaCy's en_core_web_sm",
        f"the tokenizer that {namer} names loads it from where Python packages are",
        "Install it where the model runs: python -m spacy download en_core_web_sm",
    )


def clap(namer: str) -> UnmetDependency:
    """The joint embedding, whose checkpoint is a file of the training cluster."""
    return UnmetDependency(
        "a CLAP checkpoint",
        f"{namer} names it by its place on the machine that it was trained on",
        "Install laion_clap and put the checkpoint there; `roberta-base` is loaded as well",
    )


def chord_mapping(namer: str) -> UnmetDependency:
    """The chords' numbers, a file of AudioCraft's repository."""
    return UnmetDependency(
        "assets/chord_to_index_mapping.pkl",
        f"{namer} is conditioned on chords; the file comes with AudioCraft's sources only",
        "Take it from AudioCraft's repository and name it to get_pretrained as chords_mapping_path",
    )


def _trained_on(model: str) -> str:
    return f"the codec that {model} was trained on"


HARD_CODED: Final = {
    "mbd_musicgen_32khz.th": (
        Dependency(
            "facebook/musicgen-small",
            _trained_on("mbd_musicgen_32khz.th"),
            filenames=("compression_state_dict.bin",),
        ),
    ),
    **{
        name: (
            Dependency(
                "facebook/encodec_24khz",
                _trained_on(name),
                filenames=("config.json",),
                one_of=_TRANSFORMERS_WEIGHTS,
            ),
        )
        for name in ("mbd_comp_2.pt", "mbd_comp_4.pt", "mbd_comp_8.pt")
    },
}
"""Dependencies by a checkpoint's filename: what AudioCraft's loader of that file loads too."""
