"""Window features: one definition for replay and live, from the plan to the state and its snapshots."""
