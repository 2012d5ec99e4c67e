"""Where trials run: in this process, or on Ray.

| file | what it does |
|---|---|
| events, runner | jobs, what is told of them, and what any runner can do |
| in_process | the runner in this process |
| ray_runner, ray_session, ray_worker, message_broker | the runner on Ray, Ray itself, its workers, and how they talk |
"""
