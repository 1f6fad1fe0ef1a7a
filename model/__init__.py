"""What is computed: transformers as pure functions of parameters and batches.

Array names end in the letters of their axes, and einsum strings use the same capitals:

    B batch           L query length         M key (memory) length      T cache length
    D model           H query heads          G key/value heads          R query heads a key/value head (H = G R)
    K head size       U head size of values  F feed-forward             V vocabulary
    N layers          C the two halves, gate and up, of a gated layer

The compute dtype is the dtype of the parameters that a model is called with: hand it bfloat16 parameters and it
computes in bfloat16, with norm statistics, softmax and loss in float32.
"""
