"""The list of methods, one line each."""

from functools import partial

from steppe.core.method.registry import METHODS as METHODS
from steppe.core.method.registry import TRIED
from steppe.methods import api

METHODS |= {
    "plain": api.Plain,
    "repeat-step": api.RepeatStep,
    "two-step": api.TwoStep,
    "gc": api.GC,
    "agc": api.AGC,
    "sam": api.SAM,
    "sam-on": partial(api.SAM, where="norm"),
    "random-sam": api.RandomSAM,
    "msam": api.MSAM,
    "async-sam": api.AsyncSAM,
    "ae-sam": api.AESAM,
    "sampa": api.SAMPa,
    "ssam": api.SSAM,
    "vasso": api.VaSSO,
    "le-sam": api.LESAM,
    "functional-sam": api.FunctionalSAM,
    "asam": api.ASAM,
    "mixed-sam": api.MixedSAM,
    "gsam": api.GSAM,
    "esam": api.ESAM,
    "looksam": api.LookSAM,
    "look-layersam": partial(api.LookSAM, layerwise=True),
    "friendly-sam": api.FriendlySAM,
    "wsam": api.WSAM,
    "r-sam": api.RSAM,
    "imbsam": api.ImbSAM,
    "focal-sam": api.FocalSAM,
    "rwp": api.RWP,
    "arwp": api.ARWP,
    "lpf-sgd": api.LPFSGD,
    "flat-lora": api.FlatLoRA,
    "bi-lora": api.BiLoRA,
    "saf": api.SAF,
    "mesa": api.MESA,
    "swa": api.SWA,
    "ema": api.EMA,
    "lawa": api.LAWA,
    "averages": api.Averages,
    "lookahead": api.Lookahead,
    "dml": api.DML,
    "dml-alternating": api.AlternatingDML,
    "kdcl": api.KDCL,
    "one": api.ONE,
    "okddip": api.OKDDip,
    "ffl": api.FFL,
    "pcl": api.PCL,
    "okdph": api.OKDPH,
    "sadt-v1": partial(api.SADT, variant=1),
    "sadt-v2": partial(api.SADT, variant=2),
    "sadt-v3": partial(api.SADT, variant=3),
}

TRIED |= {
    *("plain", "repeat-step", "two-step", "sam", "sam-on", "asam", "gsam", "ssam", "vasso", "le-sam"),
    *("functional-sam", "msam", "async-sam", "ae-sam", "sampa", "esam", "looksam", "imbsam", "focal-sam"),
    *("rwp", "lpf-sgd", "flat-lora", "bi-lora", "saf", "mesa", "swa", "ema", "lawa", "averages"),
    *("dml", "kdcl", "one", "okddip", "ffl", "pcl", "okdph", "sadt-v1", "sadt-v2", "sadt-v3"),
}
