"""Where the dots were: names of models' parts that have an underscore of their own, and those that have none.

kohya's names write every dot as an underscore, so `to_out_0` has to be told from `to_out.0` by knowing the words. They
were read off the models that sd-scripts and musubi-tuner train and off diffusers' and transformers' own names of them.
"""

import functools

from hina_kohya.loras.errors import AdapterError

_JOINED = """
adaLN_modulation adaln_modulation adaln_modulation_cross_attn adaln_modulation_mlp adaln_modulation_self_attn
adaln_proj add_embedding add_k_proj add_q_proj add_v_proj addition_t_embedding all_final_layer all_x_embedder byt5_in
c_embedder cap_embedder clean_x_embedder clip_embedder cond_proj cond_type_embedding context_block context_embedder
context_refiner conv_in conv_norm_out conv_out conv_shortcut cross_attention cross_attn double_blocks
double_stream_modulation_img double_stream_modulation_txt down_blocks down_proj embed_image_indicator embed_tokens
emb_layers feed_forward ff_context final_layer final_layer2 final_layer_norm gate_proj group_norm guidance_embedder
guidance_in image_embedder img_attn img_attn_k img_attn_proj img_attn_q img_attn_qkv img_attn_v img_emb img_in img_mlp
img_mod in_layer in_layers individual_token_refiner input_blocks input_embedder input_proj joint_blocks k_img k_proj
label_emb layer_norm layer_norm1 layer_norm2 linear_1 linear_2 linear_fc1 linear_fc2 llm_adapter llm_cond_proj lm_head
mid_block middle_block mlp_in mlp_out noise_refiner norm_out o_proj out_layer out_layers out_proj output_blocks
output_proj patch_embed patch_embedding pooled_text_embeddings pos_embed position_embedding proj_in proj_mlp proj_out
q_proj refiner_blocks self_attention self_attn self_attn_proj self_attn_qkv single_blocks single_stream_modulation
single_transformer_blocks skip_connection t_embedder t_embedder1 t_embedder2 t_embedding text_embedder text_embedding
text_embeddings text_model text_modulation text_projection text_transformer_blocks time_emb_proj time_embed
time_embedding time_embeddings time_in time_projection time_text_embed timestep_embedder to_add_out to_k to_key to_kv
to_out to_q to_qkv to_query to_v to_value token_embedding token_refiner transformer_blocks txt_attn txt_attn_k
txt_attn_proj txt_attn_q txt_attn_qkv txt_attn_v txt_in txt_mlp txt_mod txt_norm up_blocks up_proj v_img v_proj
vector_in visual_embeddings visual_modulation visual_transformer_blocks wi_0 wi_1 x_block x_embedder y_embedder
"""
_SINGLE = """
DenseReluDense SelfAttention add attention attentions attn attn1 attn2 block blocks conv conv1 conv2 downsamplers
embedder embeddings encoder fc fc1 fc2 fc3 ff ffn first gate head k last layer layer1 layer2 layers lin linear linear1
linear2 mlp mod model modulation net norm norm1 norm2 norm3 o op out proj q qkv resnets skip tmlp tproj txtmlp
upsamplers v w1 w2 w3 wo wk wq wv
"""
# FLUX has `img_attn.qkv` where HunyuanVideo has `img_attn_qkv`: the rest of the file tells.
_HUNYUAN = {f"{stream}_attn_{part}" for stream in ("img", "txt") for part in ("qkv", "proj", "q", "k", "v")}
_HUNYUAN_SIGNS = ("individual_token_refiner", "img_mlp_fc1", "txt_mlp_fc1", "img_mod_linear", "txt_mod_linear")


def is_hunyuan(flat_names: list[str]) -> bool:
    """Whether names of a file are those of HunyuanVideo or HunyuanImage."""
    return any(sign in name for name in flat_names for sign in _HUNYUAN_SIGNS)


def dotted(flat: str, hunyuan: bool = False) -> str:
    """The path behind a name without dots. Raises AdapterError for words that are not known."""
    words = _known(hunyuan)
    tokens = flat.split("_")
    path, place = [], 0
    while place < len(tokens):
        for end in range(min(len(tokens), place + 5), place, -1):
            word = "_".join(tokens[place:end])
            if word in words or (end == place + 1 and word.isdigit()):
                path.append(word)
                place = end
                break
        else:
            rest = "_".join(tokens[place:])
            raise AdapterError(
                f"where the dots are in {flat} cannot be told (from {rest} on): kohya's names have none and this model "
                "is not known; leave --names out"
            )
    return ".".join(path)


@functools.cache
def _known(hunyuan: bool) -> frozenset[str]:
    joined = set(_JOINED.split()) - (set() if hunyuan else _HUNYUAN)
    return frozenset(joined | set(_SINGLE.split()))
