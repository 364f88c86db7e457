"""Configuration of a Llama-family model whose FFNs were carved into shared and routed experts."""

from transformers.models.llama.configuration_llama import LlamaConfig


class CmoeConfig(LlamaConfig):
    """The dense model's fields plus those that carving adds.

    num_experts              experts of a layer, shared ones included
    num_shared_experts       experts that are always on; stored as one FFN (0: none)
    num_experts_per_tok      active routed experts of a token; with router_selector "threshold" their mean
    moe_intermediate_size    neurons of one expert
    router_type              "linear": s = W x + b
                             "analytical": s_j = silu(g_j . x) (u_j . x)
                             "authors": the absolute value of that, with rows of unit norm
    router_selector          "topk": the num_experts_per_tok largest scores, ties to the smaller index
                             "threshold": every expert whose score reaches the layer's threshold
    router_scale             mlp.router.scale is stored: expert j counts 1 + softmax(s)_j scale_j instead of 1
    router_selection_bias    mlp.router.selection_bias is stored: added to the scores for selection only
    compensation_bias        mlp.compensation.bias is stored: added to the output of every token
    expert_bias              mlp.experts.{e}.down_proj.bias is stored: added when expert e is active
    """

    model_type = "cmoe"
    base_model_tp_plan = None

    def __init__(
        self,
        num_experts=8,
        num_shared_experts=3,
        num_experts_per_tok=3,
        moe_intermediate_size=None,
        router_type="linear",
        router_selector="topk",
        router_scale=False,
        router_selection_bias=False,
        compensation_bias=False,
        expert_bias=False,
        **kwargs,
    ):
        if router_type not in ("linear", "analytical", "authors"):
            raise ValueError(f"router_type is '{router_type}', expected linear, analytical or authors")
        if router_selector not in ("topk", "threshold"):
            raise ValueError(f"router_selector is '{router_selector}', expected topk or threshold")
        if not 0 <= num_shared_experts <= num_experts:
            raise ValueError(f"num_shared_experts is {num_shared_experts}, expected 0 to num_experts = {num_experts}")
        if not 0 <= num_experts_per_tok <= num_experts - num_shared_experts:
            raise ValueError(
                f"num_experts_per_tok is {num_experts_per_tok}, "
                f"expected 0 to {num_experts - num_shared_experts} (the routed experts)"
            )
        super().__init__(**kwargs)
        self.num_experts = num_experts
        self.num_shared_experts = num_shared_experts
        self.num_experts_per_tok = num_experts_per_tok
        # A fresh config divides the dense FFN; a saved one always carries the number.
        self.moe_intermediate_size = moe_intermediate_size or self.intermediate_size // max(num_experts, 1)
        self.router_type = router_type
        self.router_selector = router_selector
        self.router_scale = router_scale
        self.router_selection_bias = router_selection_bias
        self.compensation_bias = compensation_bias
        self.expert_bias = expert_bias

    @property
    def num_routed_experts(self):
        return self.num_experts - self.num_shared_experts
