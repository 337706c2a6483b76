"""Serves one Safety-Gymnasium environment over standard input and output, in a Python of its own."""

import os
import pickle  # noqa: TID251 - between two processes of ours
import sys


def main(env_id):
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what packages print must not be taken for an answer
    import safety_gymnasium

    env = safety_gymnasium.make(env_id)

    def send(message):
        pickle.dump(message, answers, protocol=4)
        answers.flush()

    boxes = [(space.low, space.high) for space in (env.observation_space, env.action_space)]
    send((*boxes, env.spec.max_episode_steps if env.spec else None))
    while True:
        try:
            verb, value = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if verb == "reset":
            observation, _ = env.reset(seed=value)
            send((observation, {}))
        else:
            import numpy as np

            observation, reward, cost, terminated, truncated, _ = env.step(
                np.asarray(value, env.action_space.dtype)
            )
            send((observation, float(reward), float(cost), bool(terminated), bool(truncated), {}))


if __name__ == "__main__":
    main(sys.argv[1])
