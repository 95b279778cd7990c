"""Added to vLLM's worker (``--worker-extension-cls``): how many slots are free, and of how many."""


class Slots:
    def slots(self):
        states = self.model_runner.req_states
        return [len(states.free_indices), states.max_num_reqs]
