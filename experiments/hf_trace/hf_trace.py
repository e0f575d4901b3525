"""Records a routing trace (docs/formats.md, version 1) of a Hugging Face mixture of experts on text files.

    python experiments/hf_trace/hf_trace.py MODEL code.txt prose.txt -o trace.h5

Each file is a domain; texts in it are separated by blank lines. For other data there is record().
"""
import argparse
import collections
import pathlib
import re
import sys

import h5py
import numpy as np
import torch


class Layer:
    """The sums of one layer, by hooks on its router and its experts while the model runs."""

    def __init__(self, number, router, experts, recorder):
        self.number, self.router, self.recorder = number, router, recorder
        self.rows = collections.defaultdict(list)  # of each batch
        self.sample = collections.defaultdict(list)
        self.hooks = [router.register_forward_pre_hook(self.see_router, with_kwargs=True),
                      experts.register_forward_pre_hook(self.see_experts, with_kwargs=True)]

    def see_router(self, module, args, kwargs):
        self.hidden = [*args, *kwargs.values()][0]

    def see_experts(self, module, args, kwargs):
        x, chosen, gates = [*args, *kwargs.values()][:3]  # [tokens, D], [tokens, K], [tokens, K]
        x, hidden = (one.reshape(-1, one.shape[-1]) for one in (x, self.hidden))
        keep = self.recorder.keep
        if not len(hidden) == len(chosen) == len(keep):
            raise ValueError(f"layer {self.number}: {len(keep)} tokens in the batch, {len(hidden)} at the router, {len(chosen)} at the experts")
        x, hidden, chosen, gates = x[keep], hidden[keep], chosen[keep], gates[keep]
        bias = getattr(self.router, "bias", None)
        logits = torch.nn.functional.linear(hidden.float(), self.router.weight.float(), None if bias is None else bias.float())
        # What an expert gives before the gate is what a choice of it alone gives with a gate of 1. forward itself calls no hooks.
        one = torch.ones_like(gates[:, :1])
        outputs = [module.forward(x, chosen[:, k:k + 1], one).float() for k in range(chosen.shape[1])]
        self.add(hidden, logits.double(), chosen, gates.double(), outputs)

    def add(self, hidden, logits, chosen, gates, outputs):
        tokens, experts = logits.shape
        probabilities = self.recorder.probabilities(logits, chosen, gates)
        norms = torch.stack([output.double().norm(dim=-1) for output in outputs], 1)

        def over_routed(values=None):
            return torch.bincount(chosen.flatten(), None if values is None else values.flatten(), minlength=experts)

        sums = {"tokens": torch.tensor(tokens), "count": over_routed(), "sum_prob": probabilities.sum(0), "sum_logit": logits.sum(0),
                "sum_logit_sq": (logits**2).sum(0), "sum_gate": over_routed(gates), "sum_norm": over_routed(norms),
                "sum_norm_sq": over_routed(norms**2), "sum_gate_norm": over_routed(gates * norms), "sum_gate_norm_sq": over_routed((gates * norms)**2)}
        if len(outputs) > 1:
            sums["sum_rsd"] = over_routed(renormalised_damage(gates, outputs))
        for name, value in sums.items():
            self.rows[name].append(value.cpu().numpy())
        picked = self.recorder.picked
        self.sample["batch"].append(np.full(len(picked), self.recorder.batch, np.int32))
        self.sample["logits"].append(logits[picked].float().cpu().numpy())
        self.sample["hidden"].append(hidden[picked].float().cpu().numpy())


def renormalised_damage(gates, outputs):
    """[tokens, K]: how far the layer's output moves when a choice goes and the other gates grow to the old sum; 0 where there are no others."""
    total, whole = gates.sum(1), sum(gate[:, None] * output for gate, output in zip(gates.T, outputs))
    rest = total[:, None] - gates
    moved = torch.stack([(total[:, None] * output - whole).norm(dim=-1) for output in outputs], 1)
    return torch.where(rest > 0, gates / rest * moved, 0.0)


SCORES = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": lambda logits: logits.sigmoid()}


class Recorder:
    """What the layers share: the batch that is running, and how logits become scores."""

    def __init__(self):
        self.batch, self.scores = -1, None

    def begin(self, mask, sample):
        self.batch += 1
        self.keep = mask.flatten().bool()
        tokens = int(self.keep.sum())
        # The same tokens in every layer; a function of the batch's number.
        self.picked = np.sort(np.random.default_rng(self.batch).permutation(tokens)[:sample])

    def probabilities(self, logits, chosen, gates):
        """[tokens, M], rows sum to 1. The gates of a token are proportional to its scores: that says which scores they are."""
        if self.scores is None:
            spread = {name: of_ratios(gates / score(logits).gather(1, chosen)) for name, score in SCORES.items()}
            self.scores = min(spread, key=spread.get)
            if spread[self.scores] > 0.1:  # logits of 16 that a router rounded to bf16 make 0.06
                raise ValueError(f"gates are proportional to no scores that the format knows: relative spreads {spread}")
        scores = SCORES[self.scores](logits)
        return scores / scores.sum(-1, keepdim=True)


def of_ratios(ratios):
    """The median over tokens of the relative spread within a token."""
    return float((ratios.amax(1) / ratios.amin(1) - 1).median())


def find_layers(model, recorder):
    """A Layer for every module that holds `experts`, called with (hidden, choices, gates), and beside them a router."""
    layers = []
    for name, block in model.named_modules():
        experts = getattr(block, "experts", None)
        router = next((getattr(block, key) for key in ("gate", "router") if hasattr(block, key)), None)
        if isinstance(experts, torch.nn.Module) and isinstance(getattr(router, "weight", None), torch.Tensor):
            numbers = re.findall(r"\.(\d+)(?=\.)", f".{name}.")
            layers.append(Layer(int(numbers[0]) if numbers else len(layers), router, experts, recorder))
    if not layers:
        raise ValueError("no layer of this model holds `experts` and a router (`gate` or `router`) with a weight")
    return layers


def write(path, layers, recorder, top_k, domain, domains, aux_loss_coef):
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "exfusion-trace", "version": 1, "num_experts": layers[0].router.weight.shape[0],
                           "top_k": top_k, "scores": recorder.scores})
        if domains:
            file.attrs["domains"] = list(domains)
        if aux_loss_coef:
            file.attrs["aux_loss_coef"] = float(aux_loss_coef)
        for layer in layers:
            group = file.create_group(f"layer_{layer.number:03}")
            group["domain"] = np.array(domain, np.int32)
            for name, rows in layer.rows.items():
                group[name] = np.stack(rows)
            for name, rows in layer.sample.items():
                group[name] = np.concatenate(rows)
            bias = getattr(layer.router, "e_score_correction_bias", None)  # DeepSeek-V3's name for it
            if bias is not None:
                group["selection_bias"] = bias.double().cpu().numpy()


@torch.no_grad()
def record(model, batches, path, domains=(), sample=32):
    """Runs the model over batches (input_ids [n, length], attention_mask [n, length], domain) and writes the trace to `path`.

    Tokens whose mask is 0 are left out of every sum. `sample` tokens of each batch are kept with logits and hidden states.
    """
    recorder = Recorder()
    layers = find_layers(model, recorder)
    body, domain = getattr(model, "base_model", model), []
    model.eval()
    try:
        for ids, mask, of_domain in batches:
            recorder.begin(mask, sample)
            body(input_ids=ids, attention_mask=mask, use_cache=False)
            domain.append(of_domain)
    finally:
        for layer in layers:
            for hook in layer.hooks:
                hook.remove()
    if not domain:
        raise ValueError("no batches: nothing to record; the texts are empty, or there is no tokenizer that makes tokens of them")
    config = getattr(model, "config", None)
    coefficient = getattr(config, "router_aux_loss_coef", None) or getattr(config, "aux_loss_alpha", None)
    top_k = round(float(layers[0].rows["count"][0].sum() / layers[0].rows["tokens"][0]))
    write(path, layers, recorder, top_k, domain, domains, coefficient)


def text_batches(files, tokenizer, tokens, texts, device):
    """Batches of `texts` texts of a file, cut to `tokens` tokens and filled up with padding."""
    for domain, file in enumerate(files):
        try:
            texts_of_file = re.split(r"\n\s*\n", file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: no text in UTF-8: {error}") from None
        cut = [tokenizer(text)["input_ids"][:tokens] for text in texts_of_file if text.strip()]
        cut = [ids for ids in cut if ids]
        for first in range(0, len(cut), texts):
            some = cut[first:first + texts]
            ids = torch.zeros(len(some), max(map(len, some)), dtype=torch.long, device=device)
            mask = torch.zeros_like(ids)
            for row, one in enumerate(some):
                ids[row, :len(one)], mask[row, :len(one)] = torch.tensor(one), 1
            yield ids, mask, domain


def refuse(message):
    print("hf_trace: " + " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(2)


def load(name, device):
    """The model and its tokenizer, from a folder or from the hub."""
    if not pathlib.Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.rstrip("/").count("/") > 1):
        refuse(f"{name}: no such folder")
    sys.modules.setdefault("torchvision", None)  # text needs none, and one that was built for another torch cannot be imported
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        refuse(f"needs transformers 5 (pip install transformers==5.23.0): {error}")
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(device), AutoTokenizer.from_pretrained(name)
    except Exception as error:  # damaged weights, unknown families, missing packages: transformers raises what it likes
        refuse(f"{name}: neither a folder with a model and its tokenizer nor a name on the hub that can be loaded: {str(error).partition(chr(10))[0]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or a name on the hub")
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="text files: a domain each, texts separated by blank lines")
    parser.add_argument("-o", "--out", required=True, type=pathlib.Path, help="the trace to write")
    parser.add_argument("--tokens", type=int, default=512, help="of a text, at most (512)")
    parser.add_argument("--texts", type=int, default=8, help="in a batch (8); 50 batches or more make good intervals")
    parser.add_argument("--sample", type=int, default=32, help="tokens of each batch kept with logits and hidden states (32)")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    for file in given.files:
        if not file.is_file():
            refuse(f"{file}: no such text file")
    if not given.out.parent.is_dir() or given.out.is_dir():
        refuse(f"{given.out}: is a folder, or its folder does not exist")
    if min(given.tokens, given.texts, given.sample) < 1:
        refuse("--tokens, --texts and --sample must be 1 or more")
    model, tokenizer = load(given.model, given.device)
    try:
        record(model, text_batches(given.files, tokenizer, given.tokens, given.texts, given.device), given.out, [file.stem for file in given.files], given.sample)
    except (OSError, ValueError) as error:
        refuse(error)
    print(f"written: {given.out}; next: ./dev run exfusion-analyze {given.out} -o {given.out.with_suffix('')}-analysis/", file=sys.stderr)


if __name__ == "__main__":
    main()
