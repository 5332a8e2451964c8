"""Solutions of tutorial 1."""


def advantages_without_spread(rewards):
    # One hit of eight gets 0.875 and two get 0.75 each: a rare hit no longer counts for much more than a common one.
    return rewards - rewards.mean(dim=1, keepdim=True)


def chance_of_signal(p, g):
    return 1 - (1 - p) ** g - p**g  # neither all miss nor all hit; a group of one never has both


def wasted(rewards):
    # A group teaches nothing if all its rewards are alike: not only if all are 0.
    alike = (rewards == rewards[:, :1]).all(dim=1)
    return alike.float().mean().item()
