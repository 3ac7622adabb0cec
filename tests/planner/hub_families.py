"""A small model of each family of keras-hub's backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

VOCABULARY, LAYERS, TOKENS, CLASSES = 64, 2, 16, 8


@dataclass(frozen=True)
class Family:
    """How a backbone of a family is made, and planned.

    Attributes:
        make: the backbone, from `keras_hub`.
        shape: fills unknown sizes, as `--input-shape` does.
        inputs: shapes of one row, where those of the backbone have unknown sizes that no one shape
            fills.
        refused: in a line that has these words.
        uncounted: the operation whose memory is not counted: a loop's.
    """

    make: Callable[[Any], Any]
    shape: tuple[int, ...] | None = None
    inputs: dict[str, tuple[int, ...]] | None = None
    refused: str = ""
    uncounted: str = ""

    def build(self) -> keras.Model:
        """The backbone with a small head on its first output."""
        import keras_hub

        backbone = self.make(keras_hub)
        inputs, outputs = backbone.input, backbone.output
        if self.inputs is not None:
            given = {one.name: one.dtype for one in backbone.inputs}
            inputs = {n: keras.Input(s, dtype=given[n], name=n) for n, s in self.inputs.items()}
            outputs = backbone(inputs)
        first = keras.tree.flatten(outputs)[0]
        if first.shape[-1] is None:  # as many as rows
            first = keras.ops.mean(first, axis=-1, keepdims=True)
        model = keras.Model(inputs, keras.layers.Dense(CLASSES)(first))
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model


def _text(name: str, **given: Any) -> Family:
    """Of token ids alone."""
    return Family(lambda hub: getattr(hub.models, name)(**given), (TOKENS,))


def _image(name: str, **given: Any) -> Family:
    return Family(lambda hub: getattr(hub.models, name)(**given))


_NAMED: dict[str, Any] = {"vocabulary_size": VOCABULARY, "num_layers": LAYERS}
_WIDE: dict[str, Any] = {**_NAMED, "hidden_dim": 16, "intermediate_dim": 32}
_HEADS: dict[str, Any] = {**_WIDE, "num_heads": 2}
_GROUPED: dict[str, Any] = {**_WIDE, "num_query_heads": 4, "num_key_value_heads": 2}
_PLACED: dict[str, Any] = {**_HEADS, "max_sequence_length": TOKENS}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "top_k": 2}
_SEEN: dict[str, Any] = {"patch_size": 8, "num_layers": LAYERS, "hidden_dim": 16, "num_heads": 2}
_32: dict[str, Any] = {"image_shape": (32, 32, 3)}
_64: dict[str, Any] = {"image_shape": (64, 64, 3)}
_SMOL: dict[str, Any] = {
    **_WIDE,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_layer_enabled_list": [True] * LAYERS,
    "layer_types": ["attention"] * LAYERS,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
}
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}
_T5GEMMA: dict[str, Any] = {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in {
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "num_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "layer_types": ["full_attention"] * LAYERS,
    }.items()
}
_TOWER: dict[str, Any] = {"hidden_dim": 16, "num_layers": LAYERS, "num_heads": 2}
_WORDS: dict[str, Any] = {**_TOWER, "vocabulary_size": VOCABULARY, "embedding_dim": 16}


def _resnet(hub: Any, **given: Any) -> Any:
    return hub.models.ResNetBackbone(
        **{
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 8, 16, 16],
            "stackwise_num_blocks": [1, 1, 1, 1],
            "stackwise_num_strides": [1, 2, 2, 2],
            "block_type": "basic_block",
            **given,
        }
    )


def _mit(hub: Any) -> Any:
    return hub.models.MiTBackbone(
        **_64,
        num_layers=4,
        hidden_dims=[8, 12, 16, 20],
        layerwise_depths=[1, 1, 1, 1],
        layerwise_num_heads=[1, 2, 2, 2],
        layerwise_sr_ratios=[8, 4, 2, 1],
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        max_drop_path_rate=0.1,
    )


def _two_towers(kind: str, **given: Any) -> Family:
    """Of images and texts, each with an encoder."""

    def make(hub: Any) -> Any:
        see = getattr(hub.models, f"{kind}VisionEncoder")
        read = getattr(hub.models, f"{kind}TextEncoder")
        return getattr(hub.models, f"{kind}Backbone")(
            vision_encoder=see(**_TOWER, patch_size=8, intermediate_dim=32, **_32),
            text_encoder=read(**_WORDS, intermediate_dim=32, max_sequence_length=TOKENS),
            **given,
        )

    return Family(make, (TOKENS,))


def _hgnet(hub: Any, **given: Any) -> Any:
    return hub.models.HGNetV2Backbone(
        **{
            "depths": [1, 1],
            "embedding_size": 8,
            "hidden_sizes": [16, 32],
            "stem_channels": [3, 8, 8],
            "hidden_act": "relu",
            "use_learnable_affine_block": True,
            "stackwise_stage_filters": [[8, 8, 16, 1, 3, 3], [16, 8, 32, 1, 3, 3]],
            "apply_downsample": [False, True],
            "use_lightweight_conv_block": [False, True],
            **_64,
            **given,
        }
    )


def _d_fine(hub: Any) -> Any:
    image = {"image_shape": (64, 64, 3), "out_features": ["stage1", "stage2"]}
    return hub.models.DFineBackbone(
        backbone=_hgnet(hub, **image),
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_labels=8,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(64, 64),
        feat_strides=[4, 8],
        num_feature_levels=2,
        hidden_dim=16,
        encoder_in_channels=[16, 32],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=2,
        **image,
    )


def _blip2(hub: Any) -> Any:
    size = {"num_layers": LAYERS, "num_heads": 2, "intermediate_dim": 32}
    return hub.models.BLIP2Backbone(
        vision_encoder=hub.models.BLIP2VisionEncoder(
            **size,
            image_size=32,
            patch_size=8,
            hidden_dim=16,
            use_patch_bias=True,
            use_class_token=True,
            use_mha_bias=True,
            use_mlp_bias=True,
            dropout_rate=0.0,
            layer_norm_epsilon=1e-6,
            initializer_range=0.02,
        ),
        qformer=hub.models.BLIP2QFormer(
            **size,
            num_query_tokens=2,
            hidden_dim=16,
            vision_dim=16,
            cross_attention_frequency=1,
            dropout=0.0,
            layer_norm_epsilon=1e-6,
        ),
        language_model=hub.models.BLIP2CustomOPT(
            **size,
            vocabulary_size=VOCABULARY,
            hidden_dim=16,
            num_query_tokens=2,
            dropout=0.0,
            max_sequence_length=TOKENS + 2,
            qformer_hidden_dim=16,
        ),
    )


def _sam(hub: Any) -> Any:
    return hub.models.SAMBackbone(
        image_encoder=_vit_det(hub),
        prompt_encoder=hub.layers.SAMPromptEncoder(
            hidden_size=8,
            image_embedding_size=(4, 4),
            input_image_size=(32, 32),
            mask_in_channels=4,
        ),
        mask_decoder=hub.layers.SAMMaskDecoder(
            hidden_size=8,
            num_layers=LAYERS,
            intermediate_dim=16,
            num_heads=2,
            embedding_dim=8,
            num_multimask_outputs=3,
            iou_head_depth=2,
            iou_head_hidden_dim=8,
        ),
    )


def _vit_det(hub: Any) -> Any:
    return hub.models.ViTDetBackbone(
        **_32,
        hidden_size=16,
        num_layers=LAYERS,
        intermediate_dim=32,
        num_heads=2,
        global_attention_layer_indices=[1],
        patch_size=8,
        num_output_channels=8,
        window_size=2,
    )


def _sam3(hub: Any) -> Any:
    size: dict[str, Any] = {"hidden_dim": 32, "num_heads": 2}
    deep: dict[str, Any] = {**size, "num_layers": LAYERS, "intermediate_dim": 64}
    image = {"image_shape": (112, 112, 3), "patch_size": 14}
    return hub.models.SAM3PromptableConceptBackbone(
        vision_encoder=hub.layers.SAM3VisionEncoder(
            **deep,
            **image,
            fpn_hidden_dim=32,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(112, 112, 3),
            window_size=2,
            global_attn_indexes=[1],
        ),
        text_encoder=hub.layers.SAM3TextEncoder(
            **deep, vocabulary_size=VOCABULARY, embedding_dim=32
        ),
        geometry_encoder=hub.layers.SAM3GeometryEncoder(**deep, roi_size=7),
        detr_encoder=hub.layers.SAM3DetrEncoder(**deep),
        detr_decoder=hub.layers.SAM3DetrDecoder(**deep, **image, num_queries=10),
        mask_decoder=hub.layers.SAM3MaskDecoder(**size, num_upsampling_stages=3),
    )


def _diffusion(hub: Any) -> Any:
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone  # not exported

    words = {**_WORDS, "intermediate_dim": 32, "intermediate_output_index": -2}
    return hub.models.StableDiffusion3Backbone(
        mmdit_patch_size=2,
        mmdit_hidden_dim=32,
        mmdit_num_layers=LAYERS,
        mmdit_num_heads=2,
        mmdit_position_size=16,
        mmdit_qk_norm=None,
        mmdit_dual_attention_indices=None,
        vae=VAEBackbone([32] * 4, [1] * 4, [32] * 4, [1] * 4, name="vae"),
        clip_l=hub.models.CLIPTextEncoder(**words, name="clip_l"),
        clip_g=hub.models.CLIPTextEncoder(**words, name="clip_g"),
        **_64,
    )


def _mobile_net_v5(hub: Any) -> Any:
    """Of one block that its arguments describe, and of two more."""
    first, second = [0], [0, 0]
    return hub.models.MobileNetV5Backbone(
        **_32,
        stackwise_block_types=[["er"], ["uir", "uir"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [16, 16]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=[["relu"], ["relu", "relu"]],
        stackwise_exp_ratios=[[4.0], [6.0, 6.0]],
        stackwise_se_ratios=[[0.0], [0.0, 0.0]],
        stackwise_dw_kernel_sizes=[[0], [5, 5]],
        stackwise_dw_start_kernel_sizes=[first, second],
        stackwise_dw_end_kernel_sizes=[first, second],
        stackwise_exp_kernel_sizes=[[3], second],
        stackwise_pw_kernel_sizes=[[1], second],
        stackwise_num_heads=[first, second],
        stackwise_key_dims=[first, second],
        stackwise_value_dims=[first, second],
        stackwise_kv_strides=[first, second],
        stackwise_use_cpe=[[False], [False, False]],
        use_msfa=False,
    )


FAMILIES: dict[str, Family] = {
    "Albert": _text("AlbertBackbone", **_PLACED, embedding_dim=8),
    "BASNet": Family(
        lambda hub: hub.models.BASNetBackbone(
            image_encoder=_resnet(
                hub, input_conv_kernel_sizes=[3], stackwise_num_filters=[64, 128, 256, 512]
            ),
            num_classes=1,
            **_64,
        )
    ),
    "BLIP2": Family(_blip2, (TOKENS,)),
    "Bart": _text("BartBackbone", **_PLACED),
    "Bert": _text("BertBackbone", **_PLACED),
    "Bloom": _text("BloomBackbone", **_HEADS),
    "CLIP": _two_towers("CLIP", projection_dim=8),
    "CSPNet": _image(
        "CSPNetBackbone",
        **_64,
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2],
        stackwise_strides=[1, 2],
        stackwise_num_filters=[8, 16],
        block_type="dark_block",
        stage_type="dark",
    ),
    "DFine": Family(_d_fine, uncounted="TensorListFromTensor"),
    "DINOV2": _image("DINOV2Backbone", **_SEEN, intermediate_dim=32, **_32),
    "DINOV3": _image("DINOV3Backbone", **_SEEN, intermediate_dim=32, **_32),
    "DebertaV3": _text("DebertaV3Backbone", **_PLACED, bucket_size=8),
    "DeepLabV3": Family(
        lambda hub: hub.models.DeepLabV3Backbone(
            image_encoder=_resnet(hub, **_64),
            spatial_pyramid_pooling_key="P5",
            low_level_feature_key="P2",
            upsampling_size=8,
            dilation_rates=[2, 4],
            projection_filters=8,
            **_64,
        )
    ),
    "DeiT": _image("DeiTBackbone", **_SEEN, intermediate_dim=32, **_32),
    "DenseNet": _image("DenseNetBackbone", stackwise_num_repeats=[2, 2, 2], growth_rate=4, **_64),
    "DepthAnything": Family(
        lambda hub: hub.models.DepthAnythingBackbone(
            image_encoder=hub.models.DINOV2Backbone(
                patch_size=14,
                num_layers=4,
                hidden_dim=16,
                num_heads=2,
                intermediate_dim=32,
                image_shape=(126, 126, 3),
                position_embedding_shape=(126, 126, 3),
                apply_layernorm=True,
                name="image_encoder",
            ),
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_dims=[8, 8, 16, 16],
            fusion_hidden_dim=16,
            head_hidden_dim=8,
            head_in_index=-1,
            feature_keys=["stage1", "stage2", "stage3", "stage4"],
        )
    ),
    "DistilBert": _text("DistilBertBackbone", **_PLACED),
    "ESM": _text("ESMBackbone", **_PLACED),
    "ESM2": _text("ESM2Backbone", **_PLACED),
    "EdRec": _text(
        "EdRecBackbone",
        vocab_size=VOCABULARY,
        num_layers_enc=LAYERS,
        num_layers_dec=LAYERS,
        hidden_dim=16,
        intermediate_dim=32,
        num_heads=2,
    ),
    "EfficientNet": _image(
        "EfficientNetBackbone",
        input_shape=(64, 64, 3),
        stackwise_width_coefficients=[0.25] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 1],
        stackwise_input_filters=[32, 16, 24],
        stackwise_output_filters=[16, 24, 40],
        stackwise_expansion_ratios=[1, 4, 6],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.25, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["fused", "unfused", "v1"],
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        num_features=32,
    ),
    "Electra": _text(
        "ElectraBackbone",
        vocab_size=VOCABULARY,
        num_layers=LAYERS,
        num_heads=2,
        hidden_dim=16,
        embedding_dim=8,
        intermediate_dim=32,
        max_sequence_length=TOKENS,
    ),
    "FNet": _text("FNetBackbone", **_WIDE, max_sequence_length=TOKENS),
    "Falcon": _text("FalconBackbone", **_WIDE, num_attention_heads=2),
    "Flux": _image(
        "FluxBackbone",
        input_channels=16,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=LAYERS,
        depth_single_blocks=LAYERS,
        axes_dim=[4, 6, 6],
        theta=10_000,
        use_bias=True,
        guidance_embed=True,
        image_shape=(8, 16),
        text_shape=(8, 16),
        image_ids_shape=(8, 3),
        text_ids_shape=(8, 3),
        y_shape=(16,),
    ),
    "GPT2": _text("GPT2Backbone", **_PLACED),
    "GPTNeoX": _text("GPTNeoXBackbone", **_PLACED),
    "Gemma": _text("GemmaBackbone", **_GROUPED, head_dim=4),
    "Gemma3": _text("Gemma3Backbone", **_GROUPED, head_dim=4, image_size=16),
    "Gemma3n": Family(
        lambda hub: hub.models.Gemma3nBackbone(
            text_vocab_size=VOCABULARY,
            text_hidden_size=16,
            num_hidden_layers=LAYERS,
            pad_token_id=0,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=[32] * LAYERS,
            hidden_activation="gelu_approximate",
            layer_types=["full_attention"] * LAYERS,
            sliding_window=4,
            rope_theta=10000.0,
            max_position_embeddings=TOKENS,
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=4,
            altup_num_inputs=2,
            laurel_rank=2,
        ),
        inputs={
            "token_ids": (TOKENS,),
            "padding_mask": (TOKENS,),
        },
    ),
    "Gemma4": _text("Gemma4Backbone", **_GROUPED, head_dim=4, image_size=16),
    "GptOss": _text("GptOssBackbone", **_GROUPED, **_EXPERTS),
    "HGNetV2": Family(_hgnet),
    "Llama": _text("LlamaBackbone", **_GROUPED),
    "Llama3": _text("Llama3Backbone", **_GROUPED),
    "MetaCLIP2": _two_towers("MetaCLIP2", projection_dim=8),
    "MiT": Family(_mit),
    "Mistral": _text("MistralBackbone", **_GROUPED),
    "Mixtral": _text("MixtralBackbone", **_GROUPED, **_EXPERTS),
    "MobileNet": _image(
        "MobileNetBackbone",
        **_64,
        stackwise_expansion=[[8, 12], [16, 16]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[8, 8], [16, 16]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=32,
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=False,
        last_layer_filter=16,
        squeeze_and_excite=0.5,
        input_num_filters=8,
    ),
    "MobileNetV5": Family(_mobile_net_v5),
    "Moonshine": Family(
        lambda hub: hub.models.MoonshineBackbone(
            vocabulary_size=VOCABULARY,
            filter_dim=16,
            encoder_num_layers=LAYERS,
            decoder_num_layers=LAYERS,
            hidden_dim=16,
            intermediate_dim=32,
            encoder_num_heads=2,
            decoder_num_heads=2,
        ),
        inputs={
            "encoder_input_values": (8000, 1),
            "encoder_padding_mask": (8000,),
            "decoder_token_ids": (TOKENS,),
            "decoder_padding_mask": (TOKENS,),
        },
    ),
    "OPT": _text("OPTBackbone", **_PLACED),
    "PARSeq": Family(
        lambda hub: hub.models.PARSeqBackbone(
            image_encoder=hub.models.ViTBackbone(**_SEEN, mlp_dim=32, use_class_token=False, **_32),
            vocabulary_size=VOCABULARY,
            max_label_length=TOKENS,
            decoder_hidden_dim=16,
            num_decoder_layers=1,
            num_decoder_heads=2,
            decoder_mlp_dim=32,
        ),
        (TOKENS,),
    ),
    "PaliGemma": _text(
        "PaliGemmaBackbone",
        **_GROUPED,
        head_dim=4,
        image_size=32,
        vit_patch_size=8,
        vit_num_heads=2,
        vit_hidden_dim=16,
        vit_num_layers=LAYERS,
        vit_intermediate_dim=32,
    ),
    "Phi3": _text("Phi3Backbone", **_GROUPED),
    "Qwen": _text("QwenBackbone", **_GROUPED),
    "Qwen2": _text("Qwen2Backbone", **_GROUPED),
    "Qwen3": _text("Qwen3Backbone", **_GROUPED, head_dim=4),
    "Qwen3Moe": _text(
        "Qwen3MoeBackbone", **_GROUPED, **_EXPERTS, head_dim=4, moe_intermediate_dim=16
    ),
    "Qwen3_5": _text("Qwen3_5Backbone", **_GROUPED, **_LINEAR, head_dim=8),
    "Qwen3_5Moe": _text(
        "Qwen3_5MoeBackbone",
        **{k: v for k, v in _GROUPED.items() if k != "intermediate_dim"},
        **_LINEAR,
        **_EXPERTS,
        head_dim=8,
        moe_intermediate_dim=16,
        shared_expert_intermediate_size=16,
    ),
    "QwenMoe": _text(
        "QwenMoeBackbone",
        **_GROUPED,
        **_EXPERTS,
        moe_intermediate_dim=16,
        shared_expert_intermediate_dim=16,
    ),
    "RWKV7": Family(
        lambda hub: hub.models.RWKV7Backbone(
            **_NAMED,
            hidden_size=32,
            head_size=8,
            intermediate_dim=32,
            gate_lora=4,
            mv_lora=4,
            aaa_lora=4,
            decay_lora=4,
        ),
        (TOKENS,),
        uncounted="TensorListReserve",
    ),
    "ResNet": Family(lambda hub: _resnet(hub, **_64)),
    "RetinaNet": Family(
        lambda hub: hub.models.RetinaNetBackbone(
            image_encoder=_resnet(hub), min_level=3, max_level=6, use_p5=True, **_64
        )
    ),
    "Roberta": _text("RobertaBackbone", **_PLACED),
    "RoformerV2": _text("RoformerV2Backbone", **_HEADS, head_size=8),
    "SAM": Family(
        _sam,
        inputs={
            "images": (32, 32, 3),
            "points": (1, 2),
            "labels": (1,),
            "boxes": (1, 2, 2),
            "masks": (0, 32, 32, 1),
        },
    ),
    "SAM3PromptableConcept": Family(
        _sam3,
        inputs={
            "pixel_values": (112, 112, 3),
            "token_ids": (TOKENS,),
            "padding_mask": (TOKENS,),
            "boxes": (1, 5),
            "box_labels": (1,),
        },
        refused="its training step for 11 or 4 rows fails",  # masks of rows fit two alone
    ),
    "SegFormer": Family(
        lambda hub: hub.models.SegFormerBackbone(image_encoder=_mit(hub), projection_filters=8)
    ),
    "SigLIP": _two_towers("SigLIP"),
    "SmolLM": _text("SmolLMBackbone", **_SMOL),
    "SmolLM3": _text("SmolLM3Backbone", **_SMOL),
    "StableDiffusion3": Family(_diffusion, (TOKENS,)),
    "SwinTransformer": _image(
        "SwinTransformerBackbone",
        **_64,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
    ),
    "T5": _text("T5Backbone", **_HEADS),
    "T5Gemma": _text("T5GemmaBackbone", vocabulary_size=VOCABULARY, **_T5GEMMA),
    "T5Gemma2": _text("T5Gemma2Backbone", vocabulary_size=VOCABULARY, **_T5GEMMA),
    "VGG": _image(
        "VGGBackbone", stackwise_num_repeats=[1, 2], stackwise_num_filters=[8, 16], **_32
    ),
    "ViT": _image("ViTBackbone", **_SEEN, mlp_dim=32, **_32),
    "ViTDet": Family(_vit_det),
    "VideoPrism": _image(
        "VideoPrismBackbone",
        **_32,
        num_frames=2,
        patch_size=8,
        hidden_dim=16,
        intermediate_dim=32,
        num_heads=2,
        num_spatial_layers=LAYERS,
        num_temporal_layers=1,
        num_auxiliary_layers=0,
    ),
    "Whisper": Family(
        lambda hub: hub.models.WhisperBackbone(
            **_HEADS, max_encoder_sequence_length=2 * TOKENS, max_decoder_sequence_length=TOKENS
        ),
        inputs={
            "encoder_features": (2 * TOKENS, 80),
            "decoder_token_ids": (TOKENS,),
            "decoder_padding_mask": (TOKENS,),
        },
    ),
    "XLMRoberta": _text("XLMRobertaBackbone", **_PLACED),
    "XLNet": _text("XLNetBackbone", **_HEADS),
    "Xception": _image(
        "XceptionBackbone",
        **_64,
        stackwise_conv_filters=[[8, 8], [16, 16]],
        stackwise_pooling=[True, False],
    ),
}
