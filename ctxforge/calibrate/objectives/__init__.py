"""What a calibration minimises: losses over long texts in little memory, and which tokens count how much.

`cross_entropy` computes loss and gradient of a head a slice of rows at a time, `loss_model` puts it on a model,
`long_ce` weighs tokens by what far context is worth to them, `spans` chooses the parts of a text that count, `counts`
is the number that a loss is divided by. Torch comes with the first module that needs it, not with this package.
"""
