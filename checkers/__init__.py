"""Your checkers: functions that reward a reply in stage ppo (`ppo.rewards`), or judge it (`judge.checker`).

Both stages depend on this folder, so an edit reruns them. docs/PPO.md describes the two signatures.
"""
