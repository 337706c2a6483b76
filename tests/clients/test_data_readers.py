"""What other projects read of what we write: Minari, DSRL, OSRL, d3rlpy, TensorBoard."""

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from trebi_gym.agents import TREBIAgent
from trebi_gym.datasets import load, save


@pytest.fixture
def dsrl_env(tmp_path, shipped_dataset):
    """DSRL's own environment class, with a file of ours."""
    pytest.importorskip("dsrl")
    from dsrl.offline_env import OfflineEnv

    save(shipped_dataset, tmp_path / "data.hdf5", format="dsrl")
    env = OfflineEnv(dataset_url=str(tmp_path / "data.hdf5"))
    with gym.make("SafePendulum-v0") as made:
        env.observation_space, env.action_space = made.observation_space, made.action_space
    env.path = tmp_path / "data.hdf5"
    return env


def test_minari_loads_samples_and_recovers_the_environment(tmp_path, monkeypatch, shipped_dataset):
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    save(shipped_dataset, tmp_path / "trebi" / "pendulum-v0", format="minari")
    found = minari.load_dataset("trebi/pendulum-v0")
    assert found.total_episodes == len(shipped_dataset)
    assert found.total_steps == shipped_dataset.n_steps
    for episode in found.sample_episodes(3):
        ours = shipped_dataset[episode.id]
        np.testing.assert_array_equal(episode.observations, ours.observations)
        np.testing.assert_array_equal(episode.infos["cost"][1:], ours.costs)
    with found.recover_environment() as env:
        assert env.spec.id == "SafePendulum-v0"
        assert env.reset(seed=0)[1]["cost"] == 0.0


def test_what_minaris_collector_records_of_our_environment_is_learned_from(
    tmp_path, monkeypatch, tiny_config
):
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(gym.make("SafePendulum-v0"), record_infos=True)
    costs = []
    for seed in range(3):
        env.reset(seed=seed)
        costs.append(0.0)
        ended = False
        while not ended:
            *_, terminated, truncated, info = env.step(env.action_space.sample())
            costs[-1] += info["cost"]
            ended = terminated or truncated
    env.create_dataset("trebi/collected-v0", algorithm_name="random")
    env.close()
    found = load(tmp_path / "trebi" / "collected-v0")
    np.testing.assert_allclose(found.episode_costs, costs, rtol=1e-6)
    TREBIAgent(config=tiny_config, seed=0, device="cpu").learn(found, total_steps=8, progress_bar=False)


def test_dsrls_reader_reads_our_file(dsrl_env, shipped_dataset):
    found = dsrl_env.get_dataset(str(dsrl_env.path))
    np.testing.assert_array_equal(found["costs"], shipped_dataset.costs)
    np.testing.assert_array_equal(found["actions"], shipped_dataset.actions)
    ends = np.flatnonzero(found["terminals"] | found["timeouts"])
    np.testing.assert_array_equal(np.diff(ends, prepend=-1), shipped_dataset.lengths)


def test_osrls_constrained_decision_transformer_learns_from_our_file(dsrl_env, shipped_dataset):
    pytest.importorskip("fsrl.utils")
    from fsrl.utils import DummyLogger
    from osrl.algorithms.cdt import CDT, CDTTrainer
    from osrl.common.dataset import SequenceDataset

    windows = SequenceDataset(dsrl_env.get_dataset(str(dsrl_env.path)), seq_len=5)
    assert len(windows.dataset) == len(shipped_dataset)
    for theirs, cost in zip(windows.dataset, shipped_dataset.episode_costs, strict=True):
        assert theirs["cost_returns"][0] == pytest.approx(cost, rel=1e-4, abs=1e-4)
    model = CDT(
        state_dim=3, action_dim=1, max_action=2.0, seq_len=5, episode_len=200, embedding_dim=16, num_layers=1,
        num_heads=2, use_rew=True, use_cost=True, stochastic=False,
    )  # fmt: skip
    before = [weight.detach().clone() for weight in model.parameters()]
    trainer = CDTTrainer(model, dsrl_env, logger=DummyLogger(), lr_warmup_steps=1, learning_rate=1e-3)
    batches = iter(torch.utils.data.DataLoader(windows, batch_size=8))
    for _ in range(3):
        trainer.train_one_step(
            *(item.float() if item.dtype == torch.float64 else item for item in next(batches))
        )
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_d3rlpys_dataset_takes_our_arrays(tmp_path, shipped_dataset):
    d3rlpy = pytest.importorskip("d3rlpy")
    save(shipped_dataset, tmp_path / "data.hdf5")
    with h5py.File(tmp_path / "data.hdf5") as file:
        names = ("observations", "actions", "rewards", "terminals", "timeouts")
        observations, actions, rewards, terminals, timeouts = (file[name][()] for name in names)
    found = d3rlpy.dataset.MDPDataset(
        observations, actions, rewards, terminals.astype(np.float32), timeouts.astype(np.float32)
    )
    assert found.size() == len(shipped_dataset)
    assert found.transition_count > 0
    returns = [float(episode.compute_return()) for episode in found.episodes]
    np.testing.assert_allclose(returns, shipped_dataset.episode_returns, rtol=1e-4)
    d3rlpy.algos.BCConfig(batch_size=32).create(device="cpu:0").fit(
        found,
        n_steps=2,
        n_steps_per_epoch=2,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )


def test_tensorboards_reader_reads_the_training_log(tmp_path, tiny_config, shipped_dataset):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    agent = TREBIAgent(config=tiny_config, seed=0, device="cpu", tensorboard_log=tmp_path)
    agent.learn(shipped_dataset, total_steps=40, log_interval=5, progress_bar=False)
    read = EventAccumulator(str(tmp_path)).Reload()
    tags = read.Tags()["scalars"]
    assert tags
    for tag in tags:
        assert np.isfinite([event.value for event in read.Scalars(tag)]).all()
