"""What newer TensorRT no longer has, as one table: where it is written, since when it is gone, what replaces it.

A rule is data. ``must`` names the targets for which its words fail, are ignored, or leave an engine that is not what
was asked for; ``should`` those for which they still work and are on the way out, or have lost their meaning. Every rule
names its source: NVIDIA's migration guides, the bindings of TensorRT-RTX 1.7.1 (a test looks at them where they are
installed), Polygraphy 0.53.6, or an issue of a project.
"""

from __future__ import annotations

from dataclasses import dataclass

TARGETS = ("10", "11", "rtx")
"""The versions that can be asked about: TensorRT 10, TensorRT 11, TensorRT-RTX."""

_GUIDE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/"
TRTEXEC_10 = f"{_GUIDE}tensorrt-8x-to-10x-trtexec.html"
TRTEXEC_11 = f"{_GUIDE}tensorrt-10x-to-11x-trtexec.html"
PYTHON_10 = f"{_GUIDE}tensorrt-8x-to-10x-python-api-reference.html"
PYTHON_11 = f"{_GUIDE}tensorrt-10x-to-11x-python-api-reference.html"
GUIDE_11 = f"{_GUIDE}tensorrt-10x-to-11x.html"
RTX = "TensorRT-RTX 1.7.1, its Python bindings"
RTX_NOTES = "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/release-notes.html"
POLYGRAPHY = "Polygraphy 0.53.6, its source and command line"
MMDEPLOY = "https://github.com/open-mmlab/mmdeploy/issues/2758"


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that changed.

    Attributes:
        code: A stable word for it.
        where: What it is written in: ``trtexec`` or ``polygraphy`` (commands), ``tensorrt-python``,
            ``polygraphy-python``, or ``mmdeploy``.
        names: What is looked for: flags; attributes (``Class.name``: only on such an object, ``*.name``: on any); enum
            members and classes (``trt.Name``, ``trt.Enum.MEMBER``); arguments (``Class(name)``).
        must: Targets for which it has to change.
        should: Targets for which it works and had better change.
        what: What became of it.
        instead: What replaces it, here or in TensorRT.
        source: Where this is known from.
    """

    code: str
    where: str
    names: tuple[str, ...]
    must: tuple[str, ...]
    what: str
    instead: str
    source: str
    should: tuple[str, ...] = ()

    def level(self, target: str) -> str | None:
        """Returns ``must``, ``should`` or None for a target."""
        return "must" if target in self.must else "should" if target in self.should else None


_ALL, _NEW, _RTX = TARGETS, ("11", "rtx"), ("rtx",)
_CONVERT = (
    "Convert the model itself ('onnxbench precision', or ModelOpt's AutoCast, for fp16 and bf16; 'onnxbench quantize' "
    "for int8; ModelOpt for fp8 and int4), then build it: the engine computes in the types that the graph has."
)
_QDQ = (
    "Put QuantizeLinear/DequantizeLinear nodes into the model ('onnxbench quantize MODEL OUT --feeds DATA', or "
    "ModelOpt) and build that."
)
_PLUGIN = "Write it as IPluginV3 with an IPluginCreatorV3One; 'onnxbench plugins new' makes one that works."
_NAMES = "Tensors have names in place of binding numbers: "

RULES: tuple[Rule, ...] = (
    # ------------------------------------------------------------ trtexec
    Rule(
        "trtexec-precision",
        "trtexec",
        ("--fp16", "--bf16", "--int8", "--fp8", "--int4", "--best"),
        _NEW,
        "precision flags are gone: every network is strongly typed",
        _CONVERT,
        TRTEXEC_11,
    ),
    Rule("trtexec-calibration", "trtexec", ("--calib",), _NEW, "int8 calibration is gone", _QDQ, TRTEXEC_11),
    Rule(
        "trtexec-constraints",
        "trtexec",
        ("--precisionConstraints", "--layerPrecisions", "--layerOutputTypes"),
        _NEW,
        "precision constraints are gone with weak typing",
        "Keep these layers in float32 when the model is converted (AutoCast: --nodes_to_exclude).",
        GUIDE_11,
    ),
    Rule(
        "trtexec-strongly-typed",
        "trtexec",
        ("--stronglyTyped",),
        (),
        "strong typing is always on",
        "Drop the flag.",
        TRTEXEC_11,
        should=_NEW,
    ),
    Rule(
        "trtexec-workspace",
        "trtexec",
        ("--workspace",),
        _ALL,
        "--workspace is gone",
        "--memPoolSize=workspace:MIB; here --pool-limit workspace:SIZE.",
        TRTEXEC_10,
    ),
    Rule("trtexec-min-timing", "trtexec", ("--minTiming",), _ALL, "--minTiming is gone", "--avgTiming.", TRTEXEC_10),
    Rule(
        "trtexec-implicit-batch",
        "trtexec",
        ("--batch", "--maxBatch"),
        _ALL,
        "implicit batch is gone",
        "The batch is a dimension: --minShapes/--optShapes/--maxShapes ('onnxbench edit --make-batch-dynamic' "
        "frees it).",
        TRTEXEC_10,
    ),
    Rule(
        "trtexec-formats",
        "trtexec",
        ("--deploy", "--output", "--model", "--uff", "--uffInput", "--uffNHWC"),
        _ALL,
        "Caffe and UFF models are no longer read",
        "Export the model to ONNX, and give --onnx.",
        TRTEXEC_10,
    ),
    Rule(
        "trtexec-explicit-batch",
        "trtexec",
        ("--explicitBatch",),
        (),
        "there is no other batch any more",
        "Drop the flag.",
        TRTEXEC_10,
        should=_ALL,
    ),
    Rule(
        "trtexec-preview",
        "trtexec",
        ("--preview=disableExternalTacticSourcesForCore0805", "--preview=fasterDynamicShapes0805"),
        _ALL,
        "these preview features are gone",
        "Drop them.",
        TRTEXEC_10,
    ),
    Rule(
        "trtexec-direct-io",
        "trtexec",
        ("--directIO",),
        (),
        "it is removed in 11.0 and deprecated in 11.4",
        "Drop it.",
        PYTHON_11,
        should=("11",),
    ),
    Rule(
        "trtexec-dla",
        "trtexec",
        ("--useDLACore", "--allowGPUFallback"),
        _RTX,
        "TensorRT-RTX has no DLA",
        "Use TensorRT on Jetson for it.",
        RTX,
    ),
    Rule(
        "trtexec-dla-11",
        "trtexec",
        ("--useDLACore", "--allowGPUFallback"),
        (),
        "TensorRT 11.4 does not support DLA on DriveOS, nor JetPack",
        "Stay with TensorRT 10 for DLA.",
        GUIDE_11,
        should=("11",),
    ),
    Rule(
        "trtexec-tactic-sources",
        "trtexec",
        ("--tacticSources=CUBLAS", "--tacticSources=CUDNN"),
        _RTX,
        "TensorRT-RTX has the tactic sources EDGE_MASK_CONVOLUTIONS and JIT_CONVOLUTIONS only",
        "Drop them.",
        RTX,
    ),
    Rule(
        "trtexec-timing-cache",
        "trtexec",
        ("--timingCacheFile",),
        (),
        "a timing cache has no effect and asks for a GPU",
        "Drop it: building the same model again does nothing anyway.",
        RTX_NOTES,
        should=_RTX,
    ),
    Rule(
        "trtexec-portability",
        "trtexec",
        ("--hardwareCompatibilityLevel",),
        (),
        "TensorRT-RTX warns and takes compute capabilities in its place",
        "--compute-capability 8.6 8.9 12.0.",
        RTX_NOTES,
        should=_RTX,
    ),
    Rule(
        "trtexec-program",
        "trtexec",
        ("trtexec",),
        _RTX,
        "TensorRT-RTX comes without trtexec",
        "'onnxbench build-trt' (or its own tensorrt_rtx program).",
        "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/performance/best-practices.html",
    ),
    # ------------------------------------------------------------ Polygraphy's command line
    Rule(
        "polygraphy-precision",
        "polygraphy",
        ("--fp16", "--bf16", "--int8", "--fp8"),
        _NEW,
        "precision flags are gone (with TensorRT-RTX they are ignored without a word: a float32 engine comes out)",
        _CONVERT,
        POLYGRAPHY,
    ),
    Rule(
        "polygraphy-calibration",
        "polygraphy",
        ("--calibration-cache", "--calib-base-cls", "--calibration-base-class", "--quantile", "--regression-cutoff"),
        _NEW,
        "int8 calibration is gone",
        _QDQ,
        POLYGRAPHY,
    ),
    Rule(
        "polygraphy-constraints",
        "polygraphy",
        ("--precision-constraints", "--obey-precision-constraints", "--layer-precisions", "--quantization-flags"),
        _NEW,
        "precision constraints are gone with weak typing",
        "Keep these layers in float32 when the model is converted (AutoCast: --nodes_to_exclude).",
        POLYGRAPHY,
    ),
    Rule(
        "polygraphy-debug-precision",
        "polygraphy",
        ("debug precision",),
        _NEW,
        "layer precisions are gone, so nothing is left to search",
        "'onnxbench bisect CONVERTED.onnx --against MODEL.onnx' finds the nodes that lose accuracy.",
        POLYGRAPHY,
    ),
    Rule(
        "polygraphy-tactics",
        "polygraphy",
        (
            "--save-tactics",
            "--load-tactics",
            "--save-tactic-replay",
            "--load-tactic-replay",
            "debug build",
            "inspect diff-tactics",
            "inspect tactics",
        ),
        _NEW,
        "IAlgorithmSelector is gone, and with it tactic replay",
        "The editable mode of ITimingCache.",
        POLYGRAPHY,
    ),
    Rule(
        "polygraphy-workspace",
        "polygraphy",
        ("--workspace",),
        _ALL,
        "Polygraphy has no --workspace any more",
        "--pool-limit workspace:SIZE.",
        POLYGRAPHY,
    ),
    Rule(
        "polygraphy-to-input",
        "polygraphy",
        ("data to-input",),
        _ALL,
        "there is no 'data to-input' any more",
        "'polygraphy data merge'; 'onnxbench run --save-feeds' writes npz.",
        POLYGRAPHY,
    ),
    Rule(
        "polygraphy-dla",
        "polygraphy",
        ("--use-dla", "--allow-gpu-fallback"),
        _RTX,
        "TensorRT-RTX has no DLA",
        "Use TensorRT on Jetson for it.",
        RTX,
    ),
    Rule(
        "polygraphy-strongly-typed",
        "polygraphy",
        ("--strongly-typed",),
        (),
        "strong typing is always on",
        "Drop the flag.",
        GUIDE_11,
        should=_NEW,
    ),
    # ------------------------------------------------------------ TensorRT's Python API: gone in 10
    Rule(
        "python-workspace",
        "tensorrt-python",
        ("*.max_workspace_size",),
        _ALL,
        "max_workspace_size is gone",
        "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size).",
        PYTHON_10,
    ),
    Rule(
        "python-build-engine",
        "tensorrt-python",
        ("*.build_engine", "*.build_cuda_engine"),
        _ALL,
        "the builder makes serialized engines only",
        "builder.build_serialized_network(network, config), then Runtime.deserialize_cuda_engine.",
        PYTHON_10,
    ),
    Rule(
        "python-implicit-batch",
        "tensorrt-python",
        (
            "Builder.max_batch_size",
            "ICudaEngine.max_batch_size",
            "*.has_implicit_batch_dimension",
            "IExecutionContext.execute",
            "IExecutionContext.execute_async",
        ),
        _ALL,
        "implicit batch is gone",
        "The batch is a dimension with an optimization profile; execute_async_v3 runs it.",
        PYTHON_10,
    ),
    Rule(
        "python-builder-modes",
        "tensorrt-python",
        ("Builder.fp16_mode", "Builder.int8_mode", "Builder.strict_type_constraints", "Builder.int8_calibrator"),
        _ALL,
        "the builder's own modes are gone",
        _CONVERT,
        PYTHON_10,
    ),
    Rule(
        "python-execute-async",
        "tensorrt-python",
        ("*.execute_async_v2",),
        _ALL,
        "execute_async_v2 is gone",
        "context.set_tensor_address(name, pointer) for each tensor, then context.execute_async_v3(stream).",
        PYTHON_10,
    ),
    Rule(
        "python-binding-number",
        "tensorrt-python",
        ("*.get_binding_index", "*.get_binding_name", "ICudaEngine.num_bindings"),
        _ALL,
        "bindings have no numbers",
        f"{_NAMES}engine.num_io_tensors, engine.get_tensor_name(i).",
        PYTHON_10,
    ),
    Rule(
        "python-binding-shape",
        "tensorrt-python",
        (
            "*.get_binding_shape",
            "*.get_binding_dtype",
            "*.binding_is_input",
            "*.get_binding_format",
            "*.get_binding_format_desc",
            "*.get_binding_vectorized_dim",
            "ICudaEngine.get_location",
            "*.get_binding_bytes_per_component",
            "*.get_binding_components_per_element",
        ),
        _ALL,
        "bindings are gone",
        f"{_NAMES}engine.get_tensor_shape(name), get_tensor_dtype(name), get_tensor_mode(name), ...",
        PYTHON_10,
    ),
    Rule(
        "python-set-binding",
        "tensorrt-python",
        ("*.set_binding_shape",),
        _ALL,
        "set_binding_shape is gone",
        "context.set_input_shape(name, shape).",
        PYTHON_10,
    ),
    Rule(
        "python-profile-shape",
        "tensorrt-python",
        ("*.get_profile_shape", "*.get_profile_shape_input"),
        _ALL,
        "profiles are asked by tensor name",
        "engine.get_tensor_profile_shape(name, profile) and get_tensor_profile_values.",
        PYTHON_10,
    ),
    Rule(
        "python-profile-number",
        "tensorrt-python",
        ("IExecutionContext.active_optimization_profile=",),
        _ALL,
        "a profile is chosen on a stream",
        "context.set_optimization_profile_async(profile, stream).",
        PYTHON_10,
    ),
    Rule(
        "python-layers",
        "tensorrt-python",
        (
            "*.add_fully_connected",
            "*.add_rnn_v2",
            "INetworkDefinition.add_convolution",
            "INetworkDefinition.add_pooling",
            "INetworkDefinition.add_deconvolution",
            "INetworkDefinition.add_padding",
        ),
        _ALL,
        "the two-dimensional and recurrent layers are gone",
        "The layers with _nd (add_convolution_nd, ...), add_matrix_multiply, and loops.",
        PYTHON_10,
    ),
    Rule(
        "python-old-parsers",
        "tensorrt-python",
        ("trt.UffParser", "trt.CaffeParser"),
        _ALL,
        "Caffe and UFF models are no longer read",
        "Export the model to ONNX; trt.OnnxParser reads it.",
        PYTHON_10,
    ),
    Rule(
        "python-old-flags",
        "tensorrt-python",
        (
            "trt.BuilderFlag.STRICT_TYPES",
            "trt.BuilderFlag.ENABLE_TACTIC_HEURISTIC",
            "trt.NetworkDefinitionCreationFlag.EXPLICIT_PRECISION",
        ),
        _ALL,
        "this flag is gone",
        "Drop it (config.builder_optimization_level = 2 for the tactic heuristic).",
        PYTHON_10,
    ),
    Rule(
        "python-timing",
        "tensorrt-python",
        ("*.min_timing_iterations",),
        _ALL,
        "min_timing_iterations is gone",
        "config.avg_timing_iterations.",
        PYTHON_10,
    ),
    Rule(
        "python-explicit-batch",
        "tensorrt-python",
        ("trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH",),
        _RTX,
        "the flag says what always holds, and TensorRT-RTX does not have it",
        "builder.create_network() without it.",
        RTX,
        should=("10", "11"),
    ),
    # ------------------------------------------------------------ gone in 11
    Rule(
        "python-precision",
        "tensorrt-python",
        (
            "trt.BuilderFlag.FP16",
            "trt.BuilderFlag.INT8",
            "trt.BuilderFlag.FP8",
            "trt.BuilderFlag.BF16",
            "trt.BuilderFlag.INT4",
            "trt.BuilderFlag.FP4",
        ),
        _NEW,
        "precision flags are gone: every network is strongly typed",
        _CONVERT,
        PYTHON_11,
    ),
    Rule(
        "python-constraints",
        "tensorrt-python",
        (
            "trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
            "trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS",
            "ILayer.precision",
            "ILayer.precision_is_set",
            "*.reset_precision",
            "*.set_output_type",
            "*.reset_output_type",
            "*.output_type_is_set",
        ),
        _NEW,
        "layers have no precision of their own: what the graph says is enforced",
        "Cast in the model ('onnxbench edit', ModelOpt's AutoCast with --nodes_to_exclude).",
        PYTHON_11,
    ),
    Rule(
        "python-calibration",
        "tensorrt-python",
        (
            "*.int8_calibrator",
            "*.set_calibration_profile",
            "*.get_calibration_profile",
            "*.set_quantization_flag",
            "*.get_quantization_flag",
            "*.clear_quantization_flag",
            "*.quantization_flags",
            "trt.IInt8Calibrator",
            "trt.IInt8EntropyCalibrator",
            "trt.IInt8EntropyCalibrator2",
            "trt.IInt8MinMaxCalibrator",
            "trt.IInt8LegacyCalibrator",
            "*.set_dynamic_range",
            "ITensor.dynamic_range",
        ),
        _NEW,
        "int8 calibration and dynamic ranges are gone",
        _QDQ,
        PYTHON_11,
    ),
    Rule(
        "python-algorithm-selector",
        "tensorrt-python",
        ("*.algorithm_selector", "trt.IAlgorithmSelector"),
        _NEW,
        "IAlgorithmSelector is gone",
        "The editable mode of ITimingCache.",
        PYTHON_11,
    ),
    Rule(
        "python-fast-types",
        "tensorrt-python",
        ("*.platform_has_fast_fp16", "*.platform_has_fast_int8"),
        _NEW,
        "the platform is not asked any more",
        "Ask the model: it is built in the types that it has.",
        PYTHON_11,
    ),
    Rule(
        "python-device-memory",
        "tensorrt-python",
        ("ICudaEngine.device_memory_size",),
        _NEW,
        "device_memory_size is gone",
        "engine.device_memory_size_v2.",
        PYTHON_11,
    ),
    Rule(
        "python-creators",
        "tensorrt-python",
        ("*.plugin_creator_list", "*.get_plugin_creator"),
        _NEW,
        "the registry's methods for old plugin creators are gone",
        "registry.all_creators and registry.get_creator.",
        "https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-c-api-reference.html",
    ),
    Rule(
        "python-direct-io",
        "tensorrt-python",
        ("trt.BuilderFlag.DIRECT_IO",),
        (),
        "it is removed in 11.0 and deprecated in 11.4",
        "Drop it.",
        PYTHON_11,
        should=("11",),
    ),
    Rule(
        "python-strongly-typed",
        "tensorrt-python",
        ("trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED",),
        (),
        "strong typing is always on",
        "builder.create_network() without it.",
        GUIDE_11,
        should=_NEW,
    ),
    Rule(
        "python-inspector",
        "tensorrt-python",
        ("['Bindings']",),
        ("11",),
        "the engine inspector's JSON has 'I/O Tensors' in place of 'Bindings', and format and data type apart",
        "Read the new keys.",
        GUIDE_11,
    ),
    Rule(
        "python-plugin-v2",
        "tensorrt-python",
        (
            "trt.IPluginV2",
            "trt.IPluginV2Ext",
            "trt.IPluginV2DynamicExt",
            "trt.IPluginV2IOExt",
            "trt.IPluginCreator",
            "*.add_plugin_v2",
        ),
        _RTX,
        "plugins of version 2 are deprecated, and TensorRT-RTX takes V3 plugins only",
        _PLUGIN,
        PYTHON_11,
        should=("10", "11"),
    ),
    # ------------------------------------------------------------ other in TensorRT-RTX
    Rule(
        "python-module",
        "tensorrt-python",
        ("import tensorrt",),
        _RTX,
        "TensorRT-RTX is the module tensorrt_rtx",
        "import tensorrt_rtx as trt.",
        RTX,
    ),
    Rule(
        "python-quick-plugins",
        "tensorrt-python",
        ("import tensorrt.plugin", "trt.plugin"),
        _RTX,
        "plugins written with decorators are not in TensorRT-RTX",
        _PLUGIN,
        RTX,
    ),
    Rule(
        "python-add-plugin",
        "tensorrt-python",
        ("*.add_plugin_v3",),
        _RTX,
        "networks take no plugin by hand there: the ONNX parser puts them in",
        _PLUGIN,
        RTX,
    ),
    Rule(
        "python-rtx-names",
        "tensorrt-python",
        (
            "*.supports_model",
            "*.weight_streaming_budget",
            "*.minimum_weight_streaming_budget",
            "*.create_execution_context_without_device_memory",
            "trt.TacticSource.CUBLAS",
            "trt.TacticSource.CUBLAS_LT",
            "trt.TacticSource.CUDNN",
        ),
        _RTX,
        "TensorRT-RTX does not have it",
        "supports_model_v2, weight_streaming_budget_v2, create_execution_context; it has "
        "the tactic sources EDGE_MASK_CONVOLUTIONS and JIT_CONVOLUTIONS.",
        RTX,
    ),
    Rule(
        "python-timing-cache",
        "tensorrt-python",
        ("*.create_timing_cache", "*.set_timing_cache"),
        (),
        "a timing cache has no effect and asks for a GPU",
        "Drop it.",
        RTX_NOTES,
        should=_RTX,
    ),
    # ------------------------------------------------------------ Polygraphy's loaders
    Rule(
        "loader-precision",
        "polygraphy-python",
        ("CreateConfig(fp16)", "CreateConfig(int8)", "CreateConfig(bf16)", "CreateConfig(fp8)"),
        _NEW,
        "CreateConfig's precisions are gone",
        _CONVERT,
        POLYGRAPHY,
    ),
    Rule(
        "loader-calibrator",
        "polygraphy-python",
        ("CreateConfig(calibrator)", "Calibrator"),
        _NEW,
        "int8 calibration is gone",
        _QDQ,
        POLYGRAPHY,
    ),
    Rule(
        "loader-constraints",
        "polygraphy-python",
        (
            "CreateConfig(precision_constraints)",
            "CreateConfig(obey_precision_constraints)",
            "CreateConfig(quantization_flags)",
            "SetLayerPrecisions",
        ),
        _NEW,
        "precision constraints are gone with weak typing",
        "Cast in the model.",
        POLYGRAPHY,
    ),
    Rule(
        "loader-tactics",
        "polygraphy-python",
        ("CreateConfig(algorithm_selector)", "TacticRecorder", "TacticReplayer"),
        _NEW,
        "IAlgorithmSelector is gone, and with it tactic replay",
        "The editable mode of ITimingCache.",
        POLYGRAPHY,
    ),
    Rule(
        "loader-old-arguments",
        "polygraphy-python",
        ("CreateConfig(max_workspace_size)", "CreateConfig(strict_types)"),
        _ALL,
        "CreateConfig does not have it any more",
        "memory_pool_limits={trt.MemoryPoolType.WORKSPACE: size}.",
        POLYGRAPHY,
    ),
    Rule(
        "loader-dla",
        "polygraphy-python",
        ("CreateConfig(use_dla)", "CreateConfig(allow_gpu_fallback)"),
        _RTX,
        "TensorRT-RTX has no DLA",
        "Use TensorRT on Jetson for it.",
        RTX,
    ),
    Rule(
        "loader-engine",
        "polygraphy-python",
        ("EngineFromNetwork",),
        (),
        "it deserializes the engine, which TensorRT-RTX does on a GPU only",
        "EngineBytesFromNetwork, or 'onnxbench build-trt'.",
        POLYGRAPHY,
        should=_RTX,
    ),
    Rule(
        "loader-strongly-typed",
        "polygraphy-python",
        (
            "CreateNetwork(strongly_typed)",
            "NetworkFromOnnxPath(strongly_typed)",
            "NetworkFromOnnxBytes(strongly_typed)",
        ),
        (),
        "strong typing is always on",
        "Drop it.",
        POLYGRAPHY,
        should=_NEW,
    ),
    # ------------------------------------------------------------ MMDeploy
    Rule("mmdeploy-precision", "mmdeploy", ("fp16_mode", "int8_mode"), _NEW, "weak typing is gone", _CONVERT, GUIDE_11),
    Rule(
        "mmdeploy-backend",
        "mmdeploy",
        ("backend_config",),
        _ALL,
        "MMDeploy's own TensorRT backend was never ported to TensorRT 10 and newer",
        "build-trt reads this configuration.",
        MMDEPLOY,
    ),
)
