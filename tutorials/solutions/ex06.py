"""Solutions of tutorial 6."""


def step_tokens(prompt_lengths, response_lengths, kept, share_prompt):
    # A prompt is read once for each kept response, or once if any is kept. The ratio is not G / 2 where the kept
    # responses are longer than the others, where groups are skipped, and hardly ever where prompts are shared.
    readings = kept.any(dim=1) if share_prompt else kept.sum(dim=1)
    return int((prompt_lengths * readings).sum() + response_lengths[kept].sum())


def break_even(prompt, response):
    # 2 (P + R) < P + G R means G > P / R + 2: with 500 tokens of prompt and 3 of response, groups of 169. Below that,
    # reading the prompt once saves more than dropping all but two responses, and it drops nothing.
    return prompt // response + 3


def affordable_width(rollout, update, g):
    # What is saved is the update of g - 2 responses, and it buys drawing at (rollout) a response.
    return g + (g - 2) * update // rollout
