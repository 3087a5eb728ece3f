"""The files that vectors come and go in.

| format | file | used by |
|---|---|---|
| ours | `.pt` (n_layers + 1, d_model); also `.npz` and `.safetensors` when read | this toolkit |
| assistant-axis | `.pt`, an axis or a role's vector | assistant-axis (arXiv 2601.10387) |
| capping | `.pt`, vectors with ceilings | the same, `build_capping_steerer` |
| gguf | `.gguf` control vector | llama.cpp, repeng |
| steering-vectors | `.pt` | steering-vectors |
| lm-eval | `.pt` | `lm_eval --model steered` |
"""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["ours", "assistant-axis", "capping", "gguf", "steering-vectors", "lm-eval"]

FORMATS: tuple[Format, ...] = get_args(Format)
APPLIED_TOGETHER: tuple[Format, ...] = ("steering-vectors", "lm-eval")
"""Their reader applies every layer of the file at once."""
BOUNDED: tuple[Format, ...] = ("ours", "capping", "lm-eval")
"""They can hold a floor or ceiling of the projection."""
OF_A_MODEL: tuple[Format, ...] = ("gguf", "lm-eval")
"""They say which kind of model they are for."""
