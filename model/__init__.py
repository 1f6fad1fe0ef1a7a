"""What is computed: transformers as pure functions of parameters and batches.

Array names end in the letters of their axes, and einsum strings use the same capitals:

    B batch           L query length         M key (memory) length      T cache length
    D model           H query heads          G key/value heads          R query heads a key/value head (H = G R)
    K head size       U head size of values  F feed-forward             V vocabulary
    N layers          E what an embedding or another projection has instead of D
    C classes, or the gates of a recurrent cell or a gated layer (whose two halves are gate and up)
    W beams of a search, and C what they are chosen from

Images are [B, H, W, C], height, width and channels; their patches have P rows and Q columns.

The compute dtype is the dtype of the parameters that a model is called with: hand it bfloat16 parameters and it
computes in bfloat16, with norm statistics, softmax, loss, and the sums over tokens in gradients in float32.
"""
