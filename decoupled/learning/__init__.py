"""One module's update, the chain, the fused step, stacks, the learner."""
