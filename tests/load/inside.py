"""Added to vLLM's worker (``--worker-extension-cls``), to look into it and to break it."""

import torch


class Inside:
    """Every answer is a list: vLLM sends a bare number as a string."""

    def slots(self):
        """Slots that are free, and all there are."""
        states = self.model_runner.req_states
        return [len(states.free_indices), states.max_num_reqs]

    def pictures(self):
        """Requests whose pictures are held."""
        return [len(self.model_runner.encoder_cache.mm_features)]

    def spoil(self):
        """Fill the KV pages of one running request with NaN; how many pages."""
        runner = self.model_runner
        for slot in runner.req_states.req_id_to_index.values():
            tables = runner.block_tables
            counts = tables.num_blocks.np[:, slot].tolist()
            rows = [
                table.gpu[slot, :count].tolist()
                for table, count in zip(tables.block_tables, counts, strict=True)
            ]
            pages = {page for row in rows for page in row if page}  # page 0 is nobody's
            for layer in runner.compilation_config.static_forward_context.values():
                if isinstance(layer.kv_cache, torch.Tensor):
                    parts = layer.kv_cache.unflatten(0, (runner.kv_cache_config.num_blocks, -1))
                    for page in pages:
                        parts[page].fill_(float("nan"))
            return [len(pages)]
        return [0]
