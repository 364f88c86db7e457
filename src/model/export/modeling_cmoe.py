"""A Llama-family model whose FFNs were carved into shared and routed experts.

With x the FFN input after its norm and s = router scores of x,

    FFN(x) = shared(x) + compensation + sum over the active experts j, ascending, of g_j E_j(x)
    g_j    = 1 + softmax(s)_j scale_j        (1 when no scale is stored)

Every expert is a gated FFN, down(silu(gate(x)) * up(x)); which are active is said by the router's selector. A token may have
any number of active experts, none included. With all of them active and no compensation this is the dense FFN.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel

from .configuration_cmoe import CmoeConfig


class CmoeExpert(nn.Module):
    """down(act(gate(x)) * up(x)), x [rows, hidden_size]; with `bias` the down projection adds the expert's own bias."""

    def __init__(self, config, intermediate_size, bias=False):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class CmoeRouter(nn.Module):
    """Scores of the routed experts and the set of them that each token takes. Always in f32: a rounded score is another set."""

    def __init__(self, config):
        super().__init__()
        hidden, routed = config.hidden_size, config.num_routed_experts
        self.kind = config.router_type
        self.selector = config.router_selector
        self.num_active = config.num_experts_per_tok
        self.act_fn = ACT2FN[config.hidden_act]
        if self.kind == "linear":
            self.weight = nn.Parameter(torch.zeros(routed, hidden))
            self.bias = nn.Parameter(torch.zeros(routed))
        else:
            self.gate_proj = nn.Linear(hidden, routed, bias=False)
            self.up_proj = nn.Linear(hidden, routed, bias=False)
        self.scale = nn.Parameter(torch.zeros(routed)) if config.router_scale else None
        # Set by counting loads, not by gradients.
        self.register_buffer("selection_bias", torch.zeros(routed) if config.router_selection_bias else None)
        self.register_buffer("threshold", torch.zeros(1) if self.selector == "threshold" else None)

    def scores(self, x):
        """s [tokens, routed] f32 of x [tokens, hidden_size]."""
        x = x.float()
        if self.kind == "linear":
            return nn.functional.linear(x, self.weight.float(), self.bias.float())
        gate = nn.functional.linear(x, self.gate_proj.weight.float())
        up = nn.functional.linear(x, self.up_proj.weight.float())
        s = self.act_fn(gate) * up
        return s.abs() if self.kind == "authors" else s

    def select(self, s):
        """active [tokens, routed] bool of the scores."""
        if self.selection_bias is not None:
            s = s + self.selection_bias.float()
        if self.selector == "threshold":
            return s >= self.threshold.float()
        # A stable sort sends ties to the smaller index; torch.topk promises nothing about them.
        order = torch.sort(s, dim=-1, descending=True, stable=True).indices
        return torch.zeros_like(s, dtype=torch.bool).scatter_(1, order[:, : self.num_active], True)

    def forward(self, x):
        """(active [tokens, routed] bool, weight [tokens, routed] f32, or None when every weight is 1)."""
        s = self.scores(x)
        weight = None if self.scale is None else 1.0 + s.softmax(dim=-1) * self.scale.float()
        return self.select(s), weight


class CmoeCompensation(nn.Module):
    """What a refit adds to the output of every token."""

    def __init__(self, config):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))


class CmoeMlp(nn.Module):
    """The carved FFN of one layer. x [..., hidden_size] -> the same shape and type."""

    def __init__(self, config):
        super().__init__()
        size, shared, routed = config.moe_intermediate_size, config.num_shared_experts, config.num_routed_experts
        self.shared_experts = CmoeExpert(config, shared * size) if shared else None
        self.experts = nn.ModuleList(CmoeExpert(config, size, bias=config.expert_bias) for _ in range(routed))
        self.router = CmoeRouter(config) if routed else None
        self.compensation = CmoeCompensation(config) if config.compensation_bias else None

    def forward(self, hidden_states):
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        # f32 accumulation, experts in ascending order: the result does not depend on how the sum is cut.
        out = torch.zeros_like(x, dtype=torch.float32) if self.shared_experts is None else self.shared_experts(x).float()
        if self.compensation is not None:
            out = out + self.compensation.bias.float()
        if self.router is not None:
            active, weight = self.router(x)
            for j, expert in enumerate(self.experts):
                rows = active[:, j].nonzero().squeeze(1)
                if rows.numel() == 0:
                    continue
                y = expert(x[rows]).float()
                if weight is not None:
                    y = y * weight[rows, j].unsqueeze(1)
                out = out.index_add(0, rows, y)
        return out.to(hidden_states.dtype).reshape(hidden_states.shape)


def init_cmoe_weights(module, std):
    """Fresh values for what Llama's own initialisation does not know; loaded weights never come here."""
    if isinstance(module, CmoeRouter):
        if module.kind == "linear":
            nn.init.normal_(module.weight, mean=0.0, std=std)
            nn.init.zeros_(module.bias)
        for parameter in (module.scale, module.selection_bias, module.threshold):
            if parameter is not None:
                nn.init.zeros_(parameter)
    elif isinstance(module, CmoeCompensation):
        nn.init.zeros_(module.bias)


class CmoeModel(LlamaModel):
    config_class = CmoeConfig
    # Scores decide sets: the router stays in f32 whatever the rest of the model is loaded as.
    _keep_in_fp32_modules = ["router"]
    _keep_in_fp32_modules_strict = ["router"]

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = CmoeMlp(config)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        init_cmoe_weights(module, self.config.initializer_range)


class CmoeForCausalLM(LlamaForCausalLM):
    config_class = CmoeConfig
    _keep_in_fp32_modules = ["router"]
    _keep_in_fp32_modules_strict = ["router"]

    def __init__(self, config):
        super().__init__(config)
        self.model = CmoeModel(config)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        init_cmoe_weights(module, self.config.initializer_range)


# save_pretrained then writes these files beside the weights, whichever way the model was loaded.
CmoeConfig.register_for_auto_class()
CmoeModel.register_for_auto_class("AutoModel")
CmoeForCausalLM.register_for_auto_class("AutoModelForCausalLM")
