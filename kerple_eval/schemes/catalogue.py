"""The positional schemes, one line each: where it lives and what a listing needs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from kerple_eval.support.registry import Registry


@dataclass(frozen=True, slots=True)
class SchemeEntry:
    """One positional scheme.

    ``parameters`` is a sum of products of H (heads), d (head dim), W (hidden size), R (buckets), P
    (positions), K (names in a formula), M (units of a small network), C (columns of a convolution); "a
    layer" at its end says that each layer has its own. With the option ``per_layer=true`` a scheme
    whose layers share parameters has that many a layer (see ``assembly.may_be_per_layer``).
    ``use`` is "trainable", "post-hoc" for what is usually applied to a trained model, or "training" for what
    does something in training alone. ``text_option``
    names the option that takes all the text after ``name:``. A modifier ``stands_on`` a scheme when
    it is named alone, and ``value_option`` is the option that ``name=VALUE`` gives it (see ``parse_scheme``).
    A scheme that ``extends`` another takes its place in a trained model by ``extend=``.
    """

    name: str
    target: str
    year: int
    paper: str
    kind: str
    parameters: str
    prefix_invariant: bool
    text_option: str = ""
    use: str = "trainable"
    stands_on: str = ""
    value_option: str = ""
    extends: str = ""


SCHEMES = Registry("scheme", "kerple_eval.schemes", SchemeEntry, (
    SchemeEntry(
        "kerple-log", "kerple_eval.schemes.kerple_log:KerpleLog", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "2 H", True,
    ),
    SchemeEntry(
        "kerple-power", "kerple_eval.schemes.kerple_power:KerplePower", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "2 H", True,
    ),
    SchemeEntry(
        "kerple-3-para-log", "kerple_eval.schemes.kerple_3_para_log:Kerple3ParaLog", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "3 H", True,
    ),
    SchemeEntry(
        "kerple-bias-wht", "kerple_eval.schemes.kerple_bias_wht:KerpleBiasWeight", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel and weight", "4 H", True,
    ),
    SchemeEntry(
        "kerple-gauss-1-para-wht", "kerple_eval.schemes.kerple_gauss_1_para_wht:KerpleGauss1ParaWeight", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance weight", "H", True,
    ),
    SchemeEntry(
        "kerple-gauss-2-para-wht", "kerple_eval.schemes.kerple_gauss_2_para_wht:KerpleGauss2ParaWeight", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance weight", "2 H", True,
    ),
    SchemeEntry(
        "kerple-gauss-2-para-bias", "kerple_eval.schemes.kerple_gauss_2_para_bias:KerpleGauss2ParaBias", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "2 H", True,
    ),
    SchemeEntry(
        "kerple-gauss-3-para-bias", "kerple_eval.schemes.kerple_gauss_3_para_bias:KerpleGauss3ParaBias", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "3 H", True,
    ),
    SchemeEntry(
        "kernel", "kerple_eval.schemes.kernel:FormulaKernel", 2022,
        "after Chi et al., KERPLE, arXiv 2205.09921", "distance kernel given as a formula, kernel: -r1*D**r2",
        "K H", True, text_option="formula",
    ),
    SchemeEntry(
        "alibi", "kerple_eval.schemes.alibi:Alibi", 2021,
        "Press et al., Train Short, Test Long, arXiv 2108.12409", "distance kernel", "0", True,
    ),
    SchemeEntry(
        "t5", "kerple_eval.schemes.t5:T5", 2019,
        "Raffel et al., T5, arXiv 1910.10683", "distance kernel", "R H", True,
    ),
    SchemeEntry(
        "rope", "kerple_eval.schemes.rope:Rope", 2021,
        "Su et al., RoFormer, arXiv 2104.09864", "rotation", "0", True,
    ),
    SchemeEntry(
        "rope-linear", "kerple_eval.schemes.rope_linear:RopeLinear", 2023,
        "Chen et al., Positional Interpolation, arXiv 2306.15595",
        "rotation", "0", True,
        use="post-hoc", extends="rope",
    ),
    SchemeEntry(
        "rope-ntk", "kerple_eval.schemes.rope_ntk:RopeNtk", 2023,
        "bloc97; Peng et al., YaRN, arXiv 2309.00071",
        "rotation", "0", True,
        use="post-hoc", extends="rope",
    ),
    SchemeEntry(
        "rope-dynamic", "kerple_eval.schemes.rope_dynamic:RopeDynamic", 2023,
        "emozilla; Peng et al., YaRN, arXiv 2309.00071",
        "rotation by the window", "0", False,
        use="post-hoc", extends="rope",
    ),
    SchemeEntry(
        "rope-yarn", "kerple_eval.schemes.rope_yarn:RopeYarn", 2023,
        "Peng et al., YaRN, arXiv 2309.00071",
        "rotation, scores sharpened", "0", True,
        use="post-hoc", extends="rope",
    ),
    SchemeEntry(
        "rope-longrope", "kerple_eval.schemes.rope_longrope:RopeLongrope", 2024,
        "Ding et al., LongRoPE, arXiv 2402.13753",
        "rotation by the window", "0", False,
        use="post-hoc", extends="rope",
    ),
    SchemeEntry(
        "rope-llama3", "kerple_eval.schemes.rope_llama3:RopeLlama3", 2024,
        "Llama 3 Herd of Models, arXiv 2407.21783",
        "rotation", "0", True,
        use="post-hoc", extends="rope",
    ),
    SchemeEntry(
        "theta", "kerple_eval.schemes.theta:Theta", 2023,
        "Xiong et al., Effective Long-Context Scaling, arXiv 2309.16039",
        "rotation", "0", True,
        use="post-hoc", extends="rope",
    ),
    SchemeEntry(
        "p-rope", "kerple_eval.schemes.p_rope:PRope", 2024,
        "Barbero et al., Round and Round We Go, arXiv 2410.06205",
        "rotation", "0", True,
    ),
    SchemeEntry(
        "xpos", "kerple_eval.schemes.xpos:XPos", 2022,
        "Sun et al., A Length-Extrapolatable Transformer, arXiv 2212.10554",
        "rotation and decay", "0", True,
    ),
    SchemeEntry(
        "sandwich", "kerple_eval.schemes.sandwich:Sandwich", 2022,
        "Chi et al., Receptive Field Analysis, arXiv 2212.10356",
        "distance kernel", "0", True,
    ),
    SchemeEntry(
        "cape", "kerple_eval.schemes.cape:Cape", 2021,
        "Likhomanenko et al., CAPE, arXiv 2106.03143",
        "absolute, augmented in training", "0", True,
    ),
    SchemeEntry(
        "sinusoidal", "kerple_eval.schemes.sinusoidal:Sinusoidal", 2017,
        "Vaswani et al., Attention Is All You Need, arXiv 1706.03762", "absolute", "0", True,
    ),
    SchemeEntry(
        "learned", "kerple_eval.schemes.learned:Learned", 2017,
        "Gehring et al., arXiv 1705.03122", "absolute", "P W", True,
    ),
    SchemeEntry(
        "nope", "kerple_eval.schemes.nope:Nope", 2022,
        "Haviv et al., arXiv 2203.16634; Kazemnejad et al., arXiv 2305.19466", "none", "0", True,
        extends="rope",
    ),
    SchemeEntry(
        "fire", "kerple_eval.schemes.fire:Fire", 2023,
        "Li et al., FIRE, arXiv 2310.04418",
        "bias of positions", "2 M + M H + H + 2", True,
    ),
    SchemeEntry(
        "dape", "kerple_eval.schemes.dape:Dape", 2024,
        "Zheng et al., DAPE, arXiv 2405.14722",
        "bias adapted by content", "2 H + 2 H M + M + M H + H a layer", True,
    ),
    SchemeEntry(
        "dape-v2", "kerple_eval.schemes.dape_v2:DapeV2", 2024,
        "Zheng et al., DAPE V2, arXiv 2410.04798",
        "bias adapted by content", "2 H + 2 H M C + M + M H C + H a layer", True,
    ),
    SchemeEntry(
        "cope", "kerple_eval.schemes.cope:Cope", 2024,
        "Golovneva et al., CoPE, arXiv 2405.18719",
        "positions counted by content", "d P a layer", True,
    ),
    SchemeEntry(
        "fox", "kerple_eval.schemes.fox:Fox", 2025,
        "Lin et al., Forgetting Transformer, arXiv 2503.02130",
        "gates read from the text", "W H + H a layer", True,
    ),
    SchemeEntry(
        "path", "kerple_eval.schemes.path:Path", 2025,
        "Yang et al., PaTH Attention, arXiv 2505.16381",
        "steps read from the text", "2 W M + W C + W H + H a layer", True,
    ),
    SchemeEntry(
        "stick-breaking", "kerple_eval.schemes.stick_breaking:StickBreaking", 2024,
        "Tan et al., Stick-Breaking Attention, arXiv 2410.17980",
        "order of the keys, in place of softmax", "0", True,
    ),
    SchemeEntry(
        "wall", "kerple_eval.schemes.wall:Wall", 2026,
        "Pai et al., Wall Attention, Tilde Research",
        "gates of channels, read from the text", "W W + W a layer", True,
    ),
    SchemeEntry(
        "window", "kerple_eval.schemes.window:SlidingWindowMask", 2020,
        "Beltagy et al., Longformer, arXiv 2004.05150; Chi et al., KERPLE, arXiv 2205.09921",
        "window, applied to any scheme", "0", True, stands_on="nope", value_option="width",
    ),
    SchemeEntry(
        "ssmax", "kerple_eval.schemes.ssmax:SSMax", 2025,
        "Nakanishi, Scalable-Softmax, arXiv 2501.19399",
        "scaling of scores, applied to any scheme", "H", True, stands_on="rope", value_option="start",
    ),
    SchemeEntry(
        "log-n", "kerple_eval.schemes.log_n:LogN", 2022,
        "Su, kexue.fm 8823; Chiang and Cholak, arXiv 2202.12172",
        "scaling of scores, applied to any scheme", "0", True,
        use="post-hoc", stands_on="rope", value_option="original",
    ),
    SchemeEntry(
        "temperature", "kerple_eval.schemes.temperature:Temperature", 2025,
        "Meta, Llama 4; after Nakanishi, arXiv 2501.19399",
        "scaling of scores, applied to any scheme", "0", True, stands_on="nope", value_option="floor",
    ),
    SchemeEntry(
        "sink", "kerple_eval.schemes.sink:Sink", 2025,
        "OpenAI, gpt-oss, arXiv 2508.10925",
        "softmax with a learned sink, applied to any scheme", "H a layer", True,
        stands_on="rope", value_option="start",
    ),
    SchemeEntry(
        "gate", "kerple_eval.schemes.gate:Gate", 2025,
        "Qiu et al., Gated Attention, arXiv 2505.06708",
        "gated output, applied to any scheme", "W W a layer", True, stands_on="rope", value_option="by",
    ),
    SchemeEntry(
        "random-positions", "kerple_eval.schemes.random_positions:RandomPositions", 2023,
        "Ruoss et al., Randomized Positional Encodings, arXiv 2305.16843",
        "positions drawn in training, applied to functions of position", "0", True,
        use="training", stands_on="rope", value_option="longest",
    ),
    SchemeEntry(
        "pose", "kerple_eval.schemes.pose:Pose", 2023,
        "Zhu et al., PoSE, arXiv 2309.10400",
        "positions skipped in training, applied to functions of position", "0", True,
        use="training", stands_on="rope", value_option="longest",
    ),
    SchemeEntry(
        "streaming-sink", "kerple_eval.schemes.streaming_sink:StreamingSink", 2023,
        "Xiao et al., StreamingLLM, arXiv 2309.17453",
        "window and moved positions, applied to relative schemes", "0", True,
        use="post-hoc", stands_on="rope", value_option="recent",
    ),
    SchemeEntry(
        "lm-infinite", "kerple_eval.schemes.lm_infinite:LmInfinite", 2023,
        "Han et al., LM-Infinite, arXiv 2308.16137",
        "window and moved positions, applied to relative schemes", "0", True,
        use="post-hoc", stands_on="rope", value_option="recent",
    ),
    SchemeEntry(
        "self-extend", "kerple_eval.schemes.self_extend:SelfExtend", 2024,
        "Jin et al., Self-Extend, arXiv 2401.01325",
        "moved positions, applied to relative schemes", "0", True,
        use="post-hoc", stands_on="rope", value_option="window",
    ),
    SchemeEntry(
        "rerope", "kerple_eval.schemes.rerope:ReRope", 2023,
        "Su, bojone/rerope",
        "moved positions, applied to relative schemes", "0", True,
        use="post-hoc", stands_on="rope", value_option="window",
    ),
    SchemeEntry(
        "leaky-rerope", "kerple_eval.schemes.rerope:LeakyReRope", 2023,
        "Su, bojone/rerope",
        "moved positions, applied to relative schemes", "0", True,
        use="post-hoc", stands_on="rope", value_option="window",
    ),
    SchemeEntry(
        "dca", "kerple_eval.schemes.dca:DualChunkAttention", 2024,
        "An et al., Dual Chunk Attention, arXiv 2402.17463",
        "moved positions, applied to relative schemes", "0", True,
        use="post-hoc", stands_on="rope", value_option="chunk",
    ),
    SchemeEntry(
        "string", "kerple_eval.schemes.string:ShiftedPositions", 2024,
        "An et al., STRING, arXiv 2410.18745",
        "moved positions, applied to relative schemes", "0", True,
        use="post-hoc", stands_on="rope", value_option="shift",
    ),
))  # fmt: skip
