"""Random feature maps whose Gram matrices estimate closed-form kernels without bias."""
