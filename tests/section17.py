"""Trainable parameters of the authors' modules, as the method pages count them; of WeakMCN for R = 256 and R = 512."""

TABLE = {
    "lang_encoder": (11_101_697, 11_101_697),
    "multi_scale_manner": (4_660_224, 4_660_224),
    "linear_vs linear_ts": (525_312, 525_312),
    "linear_dino_rec linear_dino_res": (787_456, 787_456),
    "linear_sam_rec linear_sam_res": (263_168, 263_168),
    "linear_router_rec linear_router_res": (2_052, 2_052),
    "fusion_manner": (792_576, 1_585_152),
    "multi_scale_manner_sup": (1_117_696, 4_463_616),
    "attention_manner": (397_313, 1_318_913),
    "seg_head": (1_904_385, 7_609_857),
}
TOTAL = (21_551_879, 32_317_447)
NEVER_LEARN = (643_329, 2_564_609)

# The page of RefCLIP and APL gives APL's modules in millions, to two decimals.
APL_MILLIONS = {
    "lang_encoder": 11.10,
    "tag_encoder": 11.10,
    "multi_scale_manner": 15.61,
    "multi_scale_manner_sup": 4.46,
    "fusion_manner": 2.37,
    "attention_manner": 1.32,
    "sup_head": 1.31,
    "linear_decoder": 0.79,
}
APL_LINEARS = ("linear_vs", "linear_ts", "linear_vs_pos", "linear_tag", "linear_vs_proj", "soft_weights")
APL_LINEARS_MILLIONS = 1.84
"""All of them together."""
