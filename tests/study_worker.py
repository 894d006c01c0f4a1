"""A worker on a study whose trials only wait for a moment: what the tests kill.

usage: python study_worker.py STORAGE POINTS [SECONDS]
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import mnist.training.study

mnist.training.study.HEARTBEAT, mnist.training.study.GRACE = 1, 2


def main():
    storage, points = sys.argv[1], int(sys.argv[2])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.3
    study = mnist.training.study.Study(mnist.training.study.open_storage(storage), "waiting", {"points": points},
                              [{"x": x} for x in range(points)])

    def objective(trial):
        x = trial.suggest_categorical("x", list(range(points)))
        print(f"begins {x}", flush=True)
        time.sleep(seconds)
        trial.set_user_attr("settings", {"x": x})
        trial.set_user_attr("accuracies", [x / points])
        trial.set_user_attr("seconds", seconds)
        return x / points

    study.work(objective)


if __name__ == "__main__":
    main()
