"""A TensorRT plugin with name, inputs and attributes of MMDeploy's deformable convolution; it computes nothing."""

import numpy as np
import tensorrt as trt

NAME = "MMCVModulatedDeformConv2d"
KEPT = []


class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    def __init__(self, fields):
        trt.IPluginV3.__init__(self)
        trt.IPluginV3OneCore.__init__(self)
        trt.IPluginV3OneBuild.__init__(self)
        trt.IPluginV3OneRuntime.__init__(self)
        self.num_outputs = 1
        self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, "1", "mmdeploy"
        self.timing_cache_id = ""
        self.fields = fields
        KEPT.append(self)

    def get_capability_interface(self, kind):
        return self

    def get_output_data_types(self, types):
        return [types[0]]

    def get_output_shapes(self, inputs, shape_inputs, builder):
        dims = trt.DimsExprs(4)
        dims[0], dims[1], dims[2], dims[3] = inputs[0][0], inputs[3][0], inputs[1][2], inputs[1][3]
        return [dims]

    def supports_format_combination(self, position, in_out, num_inputs):
        desc = in_out[position].desc
        return desc.format == trt.TensorFormat.LINEAR and desc.type == trt.DataType.FLOAT

    def configure_plugin(self, inputs, outputs):
        return 0

    def get_valid_tactics(self):
        return []

    def get_fields_to_serialize(self):
        self.kept = [
            trt.PluginField(name, np.array(value, np.int32), trt.PluginFieldType.INT32)
            for name, value in self.fields.items()
        ]
        return trt.PluginFieldCollection(self.kept)

    def clone(self):
        return Plugin(self.fields)

    def attach_to_context(self, context):
        return self.clone()

    def set_tactic(self, tactic):
        return 0

    def get_workspace_size(self, inputs, outputs):
        return 0

    def on_shape_change(self, inputs, outputs):
        return 0

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        return 0


class Creator(trt.IPluginCreatorV3One):
    def __init__(self):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = NAME, "1", "mmdeploy"
        names = ("stride", "padding", "dilation", "groups", "deform_groups")
        self.field_names = trt.PluginFieldCollection(
            [trt.PluginField(name, np.array([]), trt.PluginFieldType.INT32) for name in names]
        )

    def create_plugin(self, name, fields, phase):
        given = {each.name: np.array(each.data).tolist() for each in fields}
        if sorted(given) != ["deform_groups", "dilation", "groups", "padding", "stride"]:
            raise ValueError(f"attributes are missing: {sorted(given)}")
        return Plugin(given)
